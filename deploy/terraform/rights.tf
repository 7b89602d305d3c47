# Who may do what. No account has a role on the whole project that a narrower one could replace.
locals {
  member = { for name, account in google_service_account.this : name => "serviceAccount:${account.email}" }
}

resource "google_storage_bucket_iam_member" "this" {
  for_each = {
    serve_models     = { who = "serve", bucket = "models", role = "roles/storage.objectViewer" }
    retrain_models   = { who = "retrain", bucket = "models", role = "roles/storage.objectUser" }
    retrain_pictures = { who = "retrain", bucket = "pictures", role = "roles/storage.objectUser" }
    build_source     = { who = "build", bucket = "source", role = "roles/storage.objectViewer" }
  }
  bucket = google_storage_bucket.this[each.value.bucket].name
  role   = each.value.role
  member = local.member[each.value.who]
}

resource "google_artifact_registry_repository_iam_member" "build" {
  location   = google_artifact_registry_repository.images.location
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.writer"
  member     = local.member["build"]
}

resource "google_cloud_run_v2_job_iam_member" "schedule" {
  location = google_cloud_run_v2_job.retrain.location
  name     = google_cloud_run_v2_job.retrain.name
  role     = "roles/run.invoker"
  member   = local.member["schedule"]
}

# The pipeline: makes revisions (developer), tries them (invoker), writes its log and reads the service's.
resource "google_project_iam_member" "build" {
  for_each = toset(["logging.logWriter", "logging.viewer", "run.developer", "run.invoker"])
  project  = var.project
  role     = "roles/${each.key}"
  member   = local.member["build"]
}

# It may let the service and the job run as their accounts, and as no other.
resource "google_service_account_iam_member" "build" {
  for_each           = toset(["serve", "retrain"])
  service_account_id = google_service_account.this[each.key].name
  role               = "roles/iam.serviceAccountUser"
  member             = local.member["build"]
}
