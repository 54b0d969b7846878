# Three roles from one file. CPU by default; for CUDA hosts:
#   docker build --target trainer --build-arg DEVICE=gpu --build-arg TORCH_SPEC=torch==2.13.0 .
# torch comes first and exactly, so that no other requirement picks another build of it.
ARG PYTHON_VERSION=3.11.14-slim-bookworm

FROM python:${PYTHON_VERSION} AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MODELWRIGHT_HOME=/var/lib/modelwright
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/modelwright modelwright
WORKDIR /srv
COPY pyproject.toml constraints.txt README.md ./
COPY app ./app
COPY workers ./workers
COPY model_store ./model_store
COPY migrations ./migrations

FROM base AS gateway
RUN pip install -c constraints.txt -e '.[gateway]'
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
CMD ["modelwright", "gateway", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS worker
ARG DEVICE=cpu
ARG TORCH_SPEC=torch==2.13.0
RUN pip install -c constraints.txt "${TORCH_SPEC}" \
    && pip install -c constraints.txt -e ".[worker,${DEVICE}]"
USER 10001
# SIGTERM hands the job in hand back to the queue.
STOPSIGNAL SIGTERM

FROM worker AS trainer
CMD ["modelwright", "worker", "trainer"]

FROM worker AS inference
CMD ["modelwright", "worker", "inference"]
