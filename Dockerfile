# An image of the service, without models: `docker build --tag assay:0.1.0-cpu .`, or with `--build-arg DEVICE=cuda`.
# Give BASE_IMAGE by digest (python@sha256:…), so that every build has the same base.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# cpu or cuda
ARG DEVICE=cpu
# `service,embedded` adds the base of the embedded models, for a trial.
ARG EXTRAS=service,gguf
# The index of torch; empty for pip's own. Not set: the index for DEVICE.
ARG TORCH_INDEX
# Versions are those of the base's release of Debian, which the digest of BASE_IMAGE decides.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY service service
COPY training training
COPY clients clients
RUN sh service/container/install.sh /opt/assay/venv

FROM ${BASE_IMAGE}
# OpenMP for the CPU kernels; a compiler is not needed, because the package has them built.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 assay && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin assay \
    && install --directory --owner 10001 --group 10001 /models
COPY --from=build /opt/assay /opt/assay
COPY service/container/healthcheck.py /opt/assay/healthcheck.py
# Models of the hub are in /models.
ENV PATH=/opt/assay/venv/bin:$PATH HF_HOME=/models
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=25s --start-period=10m \
    CMD ["python", "/opt/assay/healthcheck.py"]
# All addresses of the container, so it starts only with keys (`--keys FILE`), or with `--insecure`.
ENTRYPOINT ["assay", "serve", "--host", "0.0.0.0", "--port", "8000"]
