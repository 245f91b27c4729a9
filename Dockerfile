# The backend: docker build -t sdfsmis .    (see Resources/Documentation/how-to/server.md)
#
# As it is, pip takes PyTorch's CUDA build, which runs on a CPU too and is some gigabytes large. For the small CPU build
# give its address from https://pytorch.org/get-started/locally/: --build-arg TORCH_INDEX=ADDRESS
FROM python:3.12-slim

ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /opt/sdfsmis
COPY constraints.txt ./
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE.txt ./
COPY SDFSMISLib ./SDFSMISLib
RUN pip install --constraint constraints.txt ".[serve]" && useradd --create-home --uid 10001 sdfsmis

USER sdfsmis
WORKDIR /home/sdfsmis
EXPOSE 7861
HEALTHCHECK --start-period=60s --interval=30s --timeout=5s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:7861/healthz', timeout=4)"]
# The address within the container; who reaches it from outside is for `docker run --publish` to say.
ENTRYPOINT ["sdfsmis", "serve", "--host", "0.0.0.0"]
