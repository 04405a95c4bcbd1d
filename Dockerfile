# An image with the command `sfumato`, for the CPU or for NVIDIA GPUs:
#
#     docker build -t sfumato .
#     docker build -t sfumato:cuda --build-arg TORCH=cu130 .
#
# TORCH is a folder of https://download.pytorch.org/whl: cpu, or a version of CUDA. CUDA's libraries come with torch's
# package, so a GPU needs only the driver and the NVIDIA container toolkit on the host.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

ARG TORCH=cpu
ARG EXTRAS=clip,lora,tensorboard,text

# torch first, in a layer of its own: it changes rarely and is by far the largest.
COPY constraints.txt /build/
RUN pip install --no-cache-dir -c /build/constraints.txt --index-url "https://download.pytorch.org/whl/${TORCH}" torch

COPY pyproject.toml README.md LICENSE CHANGELOG.md /build/
COPY src /build/src
RUN pip install --no-cache-dir -c /build/constraints.txt "/build[${EXTRAS}]"

# Runs are written to /work, a mounted folder; downloads to /home/sfumato, a volume. Both are open to every user, so
# that `--user` can be the user of the host; a user without an entry in /etc/passwd needs USER and HOME.
RUN useradd --create-home --uid 1000 sfumato && mkdir /work && chmod 1777 /work /home/sfumato
ENV HOME=/home/sfumato USER=sfumato PYTHONUNBUFFERED=1
VOLUME /home/sfumato
USER 1000
WORKDIR /work
ENTRYPOINT ["sfumato"]
CMD ["--help"]
