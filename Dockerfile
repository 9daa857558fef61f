# Easel as an image: `docker build -t easel . && docker run -p 8100:8100 easel` serves the bundled model.
#
#   --target runtime (the default)         what serves and what downloads; no torch
#   --target convert                       the same, and what turns a checkpoint into OpenVINO files
#   --build-arg BASE_IMAGE=ubuntu:24.04    another distribution; docs/decisions/ says when
#   --build-arg INTEL_GPU=1                with the distribution's driver for Intel GPUs
#
# deploy/drivers/ takes what no distribution and no package index has: driver packages (*.deb), such as those
# of the Intel NPU, and wheels (*.whl), such as Axera's axengine.
# No step needs BuildKit. The builder of old engines, however, runs every stage, wanted or not: there,
# --target convert needs --build-arg CONVERT=1 as well.
ARG BASE_IMAGE=debian:bookworm-slim

# Python of the distribution, an init, and the user: what all later stages stand on.
FROM ${BASE_IMAGE} AS system
# The versions are the distribution's: a pinned one would be gone with its next security update.
# hadolint ignore=DL3008
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      ca-certificates python3 tini \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* /var/log/*.log /var/log/apt
# 1000 is the first user of most machines, so that a folder of theirs can be mounted as it is. Some base
# images have given it away.
RUN if taken=$(getent passwd 1000); then userdel --remove "${taken%%:*}"; fi \
 && groupadd --gid 1000 easel \
 && useradd --uid 1000 --gid easel --no-create-home --home-dir /usr/src/app/data \
      --no-log-init --shell /usr/sbin/nologin easel

# pip, in a stage of which nothing is kept but the environments it fills.
FROM system AS pip
# hadolint ignore=DL3008
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/pip
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_QUIET=1

# The service's packages, without what only their developers need: headers, build files, tests.
FROM pip AS packages
# Where packages come from, if not from where pip looks by itself.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
COPY requirements/runtime.txt /tmp/
COPY deploy/drivers/ /tmp/drivers/
RUN python3 -m venv --without-pip /opt/easel \
 && install="/opt/pip/bin/pip --python /opt/easel/bin/python install" \
 && $install --require-hashes -r /tmp/runtime.txt \
 && for wheel in /tmp/drivers/*.whl; do \
      if [ -e "$wheel" ]; then $install "$wheel"; fi || exit 1; \
    done \
 && for site in /opt/easel/lib/python3*/site-packages; do \
      rm -rf "$site"/openvino/include "$site"/openvino/cmake "$site"/numpy/_core/include \
        "$site"/numpy/tests "$site"/numpy/*/tests; \
    done

# The service's own files and those of the families, compiled here because nobody may write to them later.
FROM system AS files
WORKDIR /usr/src/app
COPY . .
RUN rm -rf deploy \
 && python3 -m compileall -q --invalidation-mode unchecked-hash .

FROM system AS runtime
LABEL org.opencontainers.image.title="Easel" \
      org.opencontainers.image.description="A text-to-image service for Intel and Axera hardware" \
      org.opencontainers.image.licenses="Apache-2.0"
ARG INTEL_GPU=0
ARG INTEL_GPU_PACKAGES="intel-opencl-icd ocl-icd-libopencl1"
COPY deploy/drivers/ /opt/drivers/
# hadolint ignore=DL3008
RUN set -- /opt/drivers/*.deb; \
    if [ ! -e "$1" ]; then shift; fi; \
    if [ "$INTEL_GPU" = 1 ]; then for name in $INTEL_GPU_PACKAGES; do set -- "$@" "$name"; done; fi; \
    if [ $# -gt 0 ]; then \
      apt-get update -qq \
      && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" \
      && apt-get clean \
      && rm -rf /var/lib/apt/lists/* /var/log/*.log /var/log/apt; \
    fi
COPY --from=packages /opt/easel /opt/easel
COPY --from=files /usr/src/app /usr/src/app
WORKDIR /usr/src/app
# Group 0 may write, too, for platforms that choose a user id of their own.
RUN install -d -o easel -g 0 -m 0775 data
# GRACE: `docker stop` waits 10 seconds before it kills. /tmp is a volume for --read-only.
ENV PATH=/opt/easel/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/usr/src/app/data HF_HOME=/usr/src/app/data/hub HF_HUB_DISABLE_TELEMETRY=1 \
    HOST=0.0.0.0 PORT=8100 DATA_DIR=/usr/src/app/data \
    CONVERT_VENV=/opt/convert \
    GRACE=8
USER 1000:1000
VOLUME ["/usr/src/app/data", "/tmp"]
EXPOSE 8100
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python3", "-ISc", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health', timeout=4)"]
# 143 is the end by SIGTERM, which is what was asked for.
ENTRYPOINT ["tini", "-e", "143", "--", "python", "-m", "app"]
CMD ["serve"]

# The packages that conversions need. torch comes first and without a hash, because its builds differ: the one
# for the CPU is a tenth of the other, but only some package indexes have it (docs/operations.md). Of the 12 000
# modules only those are compiled that a conversion imports.
FROM pip AS convert-packages
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG TARGETARCH
ARG CONVERT=${TARGETARCH:+1}
WORKDIR /tmp/requirements
COPY requirements/ .
RUN mkdir /opt/convert \
 && if [ -z "$CONVERT" ]; then exit 0; fi \
 && python3 -m venv --without-pip /opt/convert \
 && install="/opt/pip/bin/pip --python /opt/convert/bin/python install --no-compile" \
 && torch=$(grep ^torch torch.txt) \
 && if ! $install "$torch+cpu"; then \
      echo "No CPU build of torch is found: the default one is 3 GB larger."; \
      $install "$torch"; \
    fi \
 && $install --no-deps --require-hashes -r convert.txt \
 && rm -rf /opt/convert/lib/python3*/site-packages/*/include \
 && /opt/convert/bin/python -c 'import diffusers, nncf, optimum.exporters.openvino.__main__' \
 && cat torch.txt convert.txt >locks \
 && digest=$(sha256sum locks) \
 && printf %s "${digest%% *}" >/opt/convert/easel-complete

FROM runtime AS convert
COPY --from=convert-packages /opt/convert /opt/convert

# The default is the last stage.
# hadolint ignore=DL3006
FROM runtime
