variable "project" {
  description = "Id of the Google Cloud project, which exists and has billing."
  type        = string
}

variable "region" {
  description = "Where everything is kept and runs."
  type        = string
  default     = "europe-west1"
}

variable "retrain_schedule" {
  description = "When retraining looks for new pictures, as cron writes it."
  type        = string
  default     = "0 3 * * 1"
}

variable "retrain_schedule_paused" {
  description = "Whether retraining waits to be started by hand. Let the first one run by hand."
  type        = bool
  default     = true
}

variable "time_zone" {
  description = "Of the schedule."
  type        = string
  default     = "Etc/UTC"
}
