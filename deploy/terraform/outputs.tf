output "registry" {
  description = "Where images are pushed to."
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
}

output "buckets" {
  description = "Names of the buckets."
  value       = { for name, bucket in google_storage_bucket.this : name => bucket.name }
}

output "accounts" {
  description = "E-mail addresses of the service accounts."
  value       = { for name, account in google_service_account.this : name => account.email }
}
