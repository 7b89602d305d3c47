# What the service needs in a Google Cloud project: APIs, registry, buckets, and four service accounts that may do just their work.
terraform {
  required_version = ">= 1.5"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.0, < 8.0"
    }
  }
}

provider "google" {
  project = var.project
  region  = var.region
}

resource "google_project_service" "this" {
  for_each           = toset(["artifactregistry", "cloudbuild", "cloudscheduler", "iam", "iamcredentials", "logging", "run", "secretmanager", "storage"])
  service            = "${each.key}.googleapis.com"
  disable_on_destroy = false
}

resource "google_artifact_registry_repository" "images" {
  location      = var.region
  repository_id = "agri-cae"
  format        = "DOCKER"
  cleanup_policies {
    id     = "old images go"
    action = "DELETE"
    condition {
      older_than = "7776000s" # 90 days
    }
  }
  cleanup_policies {
    id     = "the newest ones stay"
    action = "KEEP"
    most_recent_versions {
      keep_count = 10
    }
  }
  depends_on = [google_project_service.this]
}

# models: what the service reads; pictures: what retraining works on; source: what is handed to the pipeline
resource "google_storage_bucket" "this" {
  for_each                    = { models = true, pictures = true, source = false } # whether older versions of a file are kept
  name                        = "${var.project}-agri-cae-${each.key}"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  versioning {
    enabled = each.value
  }
  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      age                = each.value ? null : 7
      num_newer_versions = each.value ? 5 : null
    }
  }
  depends_on = [google_project_service.this]
}

resource "google_service_account" "this" {
  for_each = {
    serve    = "Answers requests"
    retrain  = "Trains on new pictures"
    schedule = "Starts the retraining"
    build    = "Tests, builds and rolls out"
  }
  account_id   = "agri-cae-${each.key}"
  display_name = each.value
  depends_on   = [google_project_service.this]
}

# The job's first image does nothing; the pipeline replaces it, and Terraform leaves that alone.
resource "google_cloud_run_v2_job" "retrain" {
  name                = "agri-cae-retrain"
  location            = var.region
  deletion_protection = false
  template {
    template {
      service_account = google_service_account.this["retrain"].email
      containers {
        image = "us-docker.pkg.dev/cloudrun/container/job"
      }
    }
  }
  lifecycle {
    ignore_changes = [annotations, client, client_version, labels, template]
  }
  depends_on = [google_project_service.this]
}

resource "google_cloud_scheduler_job" "retrain" {
  name      = "agri-cae-retrain"
  region    = var.region
  schedule  = var.retrain_schedule
  time_zone = var.time_zone
  paused    = var.retrain_schedule_paused
  http_target {
    http_method = "POST"
    uri         = "https://run.googleapis.com/v2/${google_cloud_run_v2_job.retrain.id}:run"
    oauth_token {
      service_account_email = google_service_account.this["schedule"].email
    }
  }
}
