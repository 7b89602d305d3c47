#!/usr/bin/env bash
# Build the container with docker, podman or buildah: the first one that works here. BUILDER, TARGET, TAG, BASE and FLAGS choose otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${BUILDER:-}" ]; then   # docker's client alone builds nothing: ask whether the engine answers
  for b in docker podman buildah; do "$b" info >/dev/null 2>&1 && { BUILDER=$b; break; }; done
  [ -n "${BUILDER:-}" ] || { echo "None of docker, podman and buildah works here; see deploy/README.md" >&2; exit 1; }
fi
target=${TARGET:-serve}
version=$(sed -n 's/^version = //p' settings.ini)
tag=${TAG:-agri-cae:$([ "$target" = serve ] || echo "$target-")$version}
args=(--target "$target" --tag "$tag" --build-arg VERSION="$version" --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)" --build-arg CREATED="$(date -u +%FT%TZ)")
[ -z "${BASE:-}" ] || args+=(--build-arg BASE="$BASE")
[ "$BUILDER" = docker ] || args+=(--format docker)   # OCI's own format knows no HEALTHCHECK
# shellcheck disable=SC2086
"$BUILDER" build "${args[@]}" ${FLAGS:-} .
echo "$tag"
