# The service, and with --target train what sweeps and retraining jobs run in. `make image` builds it; deploy/README.md tells how it is run.
# BASE: any image with python3 (3.11 to 3.13), its venv module and glibc.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# two environments: pip lives in the one that stays here
RUN python3 -m venv /pip && python3 -m venv --without-pip /opt/agri-cae && mkdir /data
COPY requirements/serve.txt requirements/dev.txt requirements/
RUN sed -n '/^setuptools==/,/^ *#/p' requirements/dev.txt > requirements/build.txt \
 && /pip/bin/pip install --require-hashes -r requirements/build.txt \
 && /pip/bin/pip --python /opt/agri-cae/bin/python install --only-binary :all: --require-hashes -r requirements/serve.txt
COPY . .
RUN /pip/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
 && /pip/bin/pip --python /opt/agri-cae/bin/python install --no-deps dist/*.whl \
 && find /opt/agri-cae \( -type d -name tests -o -name 'libonnxruntime.so.*' -o -path '*/onnxruntime/transformers' -o -path '*/onnxruntime/tools' -o -path '*/onnxruntime/quantization' \) -prune -exec rm -r {} +
# the tests of numpy and others, ONNX Runtime for C programs (Python has its own), and what converts models: nothing here does

FROM build AS build-train
RUN /pip/bin/pip --python /opt/agri-cae/bin/python install --only-binary :all: --require-hashes -r requirements/train.txt

# Nobody is root, and nothing but /tmp, /data and the volume of the state need be writable.
# The state (prediction log, learned profile, runs) outlives the container. Whoever --user names may write to it.
FROM ${BASE} AS run
ENV PATH=/opt/agri-cae/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1 HOME=/tmp AGRI_CAE_HOME=/var/lib/agri_cae \
    ORT_DISABLE_TELEMETRY=1 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1
COPY --from=build --chown=10001:10001 /data /data
RUN mkdir -m 1777 /var/lib/agri_cae
VOLUME /var/lib/agri_cae
WORKDIR /data
USER 10001:10001
ARG VERSION=0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title=agri_cae \
      org.opencontainers.image.description="A convolutional autoencoder that takes the noise out of agricultural images" \
      org.opencontainers.image.source=https://github.com/agri-cae/agri_cae \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.created=${CREATED}
ENTRYPOINT ["agri-cae"]

FROM run AS serve
COPY --from=build /opt/agri-cae /opt/agri-cae
ENV PORT=8080
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/readyz', timeout=4)"]
CMD ["serve", "--host", "0.0.0.0"]

FROM run AS train
COPY --from=build-train /opt/agri-cae /opt/agri-cae
COPY deploy/retrain.py /opt/agri-cae/
ENV KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3 MPLBACKEND=agg
CMD ["--help"]

# without --target it is the service
FROM serve
