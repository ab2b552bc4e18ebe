# docker build -t axion .
# With a GPU:  docker build -t axion:cuda --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130 .
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/axion
COPY constraints.txt ./
# In a layer of its own, from the wanted index: a change of the code does not fetch it again.
RUN version=$(sed -n 's/^torch==//p' constraints.txt) \
    && /opt/axion/bin/pip install --index-url "${TORCH_INDEX_URL}" \
        --extra-index-url https://pypi.org/simple -c constraints.txt "torch==${version}"
COPY pyproject.toml README.md LICENSE ./
COPY axion ./axion
RUN /opt/axion/bin/pip install -c constraints.txt .

FROM ${PYTHON_IMAGE}
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
# Triton, which computes on GPUs, builds what launches its kernels with a C compiler.
RUN case "${TORCH_INDEX_URL}" in */cpu) ;; *) apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* ;; esac
COPY --from=build /opt/axion /opt/axion
RUN useradd --uid 10001 --create-home axion \
    && install -d -o axion -g axion /data /data/hf /app
ENV PATH=/opt/axion/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/data/hf \
    TRITON_CACHE_DIR=/data/triton \
    XDG_CACHE_HOME=/data/cache
# Numeric, so that Kubernetes can see that it is not root.
USER 10001:10001
# A settings file mounted as /app/axion.toml is read.
WORKDIR /app
VOLUME /data
EXPOSE 3000
# 503 while the model loads. The start period leaves time for the first download.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ.get('SERVER_PORT') or 3000}/health\", timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "axion"]
