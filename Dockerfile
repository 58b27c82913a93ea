# base image of both stages; the tests use a local image, because CI has no access to a container registry
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# requirements-credentials.lock adds the requirements of `credentials: default`
ARG LOCK=requirements.lock
COPY ${LOCK} requirements-build.lock ./
# only /opt/venv is copied to the final image
RUN pip install --quiet --require-hashes -r requirements-build.lock \
 && python -m venv --without-pip /opt/venv \
 && pip --python /opt/venv/bin/python install --quiet --no-compile --require-hashes -r "${LOCK}"
COPY pyproject.toml README.md LICENSE ./
COPY exporter exporter
# unchecked bytecode: Python ignores modification times, which a builder can reset, and writes no bytecode at run time
RUN python -m hatchling build -t wheel -d dist \
 && pip --python /opt/venv/bin/python install --quiet --no-compile --no-deps --no-index dist/*.whl \
 && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib

FROM ${BASE}
LABEL org.opencontainers.image.title="chatapp-exporter" \
      org.opencontainers.image.description="Prometheus exporter for the health of WhatsApp phone numbers on Alibaba Cloud's Chat App Message Service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/chatapp-exporter/chatapp-exporter"
ENV PYTHONDONTWRITEBYTECODE=1
# the final image does not need pip
RUN pip uninstall --quiet --yes --root-user-action ignore pip
COPY --from=build /opt/venv /opt/venv
# directory for a state file; a new volume gets the owner of this directory
RUN install -d -o 65532 -g 65532 /var/lib/chatapp-exporter
USER 65532:65532
EXPOSE 10144
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=15s \
  CMD ["/opt/venv/bin/python", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:10144/-/healthy', timeout=4)"]
ENTRYPOINT ["/opt/venv/bin/chatapp-exporter"]
