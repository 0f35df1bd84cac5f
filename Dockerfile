# A Headrace node. It serves what is mounted at /functions and keeps its state in the volume /data.
#
#   docker build -t headrace .
#   docker run -p 127.0.0.1:8080:8080 -v ./functions:/functions:ro -v headrace-data:/data \
#       -e HEADRACE_TOKENS="main:invoke+read+write:$(openssl rand -hex 32)" headrace
#
# The node listens on all of the container's addresses, and a node that listens beyond loopback refuses to start
# without a token: HEADRACE_TOKENS must be given.

FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml LICENSE README.md ./
COPY headrace headrace
COPY functions functions
COPY runtime runtime
COPY triggers triggers
# The examples' libraries come along, so that the functions in functions/ run as they are.
RUN python -m venv /opt/headrace \
    && /opt/headrace/bin/pip install --no-cache-dir ".[examples,minio,postgres]"

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 headrace \
    && install -d -o headrace -g headrace /data /functions
COPY --from=build /opt/headrace /opt/headrace
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONUNBUFFERED=1
USER headrace
WORKDIR /home/headrace
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
# A node ends cleanly on SIGTERM: it stops claiming, and what is running is given time to end.
STOPSIGNAL SIGTERM
ENTRYPOINT ["headrace"]
CMD ["serve", "/functions", "--data", "/data", "--host", "0.0.0.0"]
