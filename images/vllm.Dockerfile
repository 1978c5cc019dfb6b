# The kit with vLLM, for `vllm: true` in a run of the family vlm; an NVIDIA GPU is needed.
#   docker build -f images/vllm.Dockerfile -t kitlib-vllm .
#   docker run --gpus all -v "$PWD/data:/kit/data" -v "$PWD/submissions:/kit/submissions" kitlib-vllm run vlm …
# vLLM chooses torch and some hundred more, so this image has a lock of its own: `make lock` resolves both.
FROM python:3.11
COPY images/vllm.lock /kit/images/vllm.lock
RUN pip install --no-cache-dir uv==0.13.8 && uv pip install --system --no-cache -r /kit/images/vllm.lock
COPY . /kit
RUN uv pip install --system --no-cache --no-deps --editable /kit
WORKDIR /kit
ENTRYPOINT ["python", "-m", "kitlib"]
