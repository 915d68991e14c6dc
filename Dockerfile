# The package with its configs, for one GPU or several:
#
#     docker build -t onpolicy_sdft .
#     docker run --rm --gpus all -v "$PWD/runs:/work/runs" onpolicy_sdft train --config configs/online/quickstart.yaml
#
# Several GPUs: add --entrypoint bash and run launch/multi_gpu.sh. torch's wheel brings the libraries of CUDA; Triton, which
# compiles kernels at the first step, needs a C compiler and Python's headers.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04

# No versions: Ubuntu takes old ones out of its index, and an image that pins them stops building.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /work
COPY pyproject.toml README.md LICENSE ./
# The package has links to configs and launch: both are there before it is built.
COPY configs configs
COPY launch launch
COPY onpolicy_sdft onpolicy_sdft
RUN python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --constraint launch/constraints.txt ".[deepspeed]" \
    && touch .venv/.installed-core

ENV PATH=/work/.venv/bin:$PATH
ENTRYPOINT ["sdft"]
