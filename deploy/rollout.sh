#!/usr/bin/env bash
# Roll IMAGE out on Cloud Run: no traffic first, then CANARY percent, then all. Where something is wrong, all traffic goes back to the revision before.
# Wants PROJECT, REGION and IMAGE. MODEL is a name in the image or a path in the bucket; empty: what the service has now.
set -euo pipefail
cd "$(dirname "$0")"
: "${PROJECT:?is not set}" "${REGION:?is not set}" "${IMAGE:?is not set}"
service=${SERVICE:-agri-cae} canary=${CANARY:-10} watch=${WATCH:-300} model=${MODEL:-}
revision=$service-$(date -u +%y%m%d-%H%M%S)
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

services() { gcloud run services "$@" --project "$PROJECT" --region "$REGION" --quiet; }
ask() { python3 -c "import json, sys; s = json.load(open('$work/now.json')); print($1)"; }
traffic() { services update-traffic "$service" --to-revisions "$1"; }
describe() { services describe "$service" --format json > "$work/now.json"; }

works() { # a picture goes in, one comes out
  local token   # of a service account, else of a person; a public service needs none
  token=$(gcloud auth print-identity-token --audiences "$1" 2>/dev/null || gcloud auth print-identity-token 2>/dev/null || true)
  curl -fsS --retry 5 --retry-all-errors --max-time 75 ${token:+-H "Authorization: Bearer $token"} ${API_KEY:+-H "X-API-Key: $API_KEY"} \
    -H 'Content-Type: image/jpeg' --data-binary @../agri_cae/samples/flower.jpg -o "$work/out.jpg" "$1/v1/denoise" && [ -s "$work/out.jpg" ]
}
failing() { # answers 5xx of the new revision, but for 503: that one says come again later
  [ -n "$(gcloud logging read "resource.type=cloud_run_revision AND resource.labels.revision_name=$revision AND httpRequest.status>=500 AND httpRequest.status!=503" \
    --project "$PROJECT" --freshness 1h --limit 1 --format 'value(timestamp)')" ]
}
back() {
  echo "$1" >&2
  if [ -n "$stable" ]; then traffic "$stable=100"; echo "all traffic is back on $stable" >&2; fi
  exit 1
}

stable=
if [ -n "$(services list --filter "metadata.name=$service" --format 'value(metadata.name)')" ]; then
  describe
  stable=$(ask 'max(s["status"].get("traffic") or [{}], key=lambda t: t.get("percent", 0)).get("revisionName", "")')
  [ -n "$model" ] || model=$(ask '"".join(e.get("value", "") for e in s["spec"]["template"]["spec"]["containers"][0].get("env", []) if e["name"] == "AGRI_CAE_SERVE__MODEL")')
fi

sed -e "s|PROJECT|$PROJECT|g; s|SERVICE\$|$service|; s|REVISION|$revision|; s|IMAGE|$IMAGE|; s|value: MODEL|value: ${model:-fast}|" service.yaml > "$work/service.yaml"
if [ -n "$stable" ]; then
  cat >> "$work/service.yaml" <<-YAML
	  traffic:
	    - revisionName: $stable
	      percent: 100
	    - revisionName: $revision
	      percent: 0
	      tag: candidate
	YAML
fi
services replace "$work/service.yaml" || back "$revision does not start"
describe
works "$(ask '[t["url"] for t in s["status"]["traffic"] if t.get("tag") == "candidate"][0]' 2>/dev/null || ask 's["status"]["url"]')" || back "$revision does not denoise"
if [ -n "$stable" ] && [ "$canary" -lt 100 ]; then
  traffic "$revision=$canary,$stable=$((100 - canary))" || back "the traffic cannot be split"
  sleep "$watch"
  if failing; then back "$revision answered with errors"; fi
fi
traffic "$revision=100" || back "$revision cannot get all traffic"
echo "$revision serves ${model:-fast}${stable:+; back: gcloud run services update-traffic $service --project $PROJECT --region $REGION --to-revisions $stable=100}"
