# Targets: cpu (serving, no torch), gpu (serving on CUDA), train (training, export and indexing).
#   docker build --target cpu -t fc7:0.1.0-cpu .
# EXTRAS adds extras of pyproject.toml to a target, separated by commas: --build-arg EXTRAS=scale,heic
# The CUDA runtime libraries are installed as Python wheels, so all targets share one base image.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# Each target installs the dependencies first, so that only the last steps run again after a change of the code.
# Wheels in the optional folder ./wheels take precedence over the package registry.
FROM ${BASE_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/fc7
ENV PATH=/opt/fc7/bin:$PATH
WORKDIR /src
COPY constraints constraints
COPY pyproject.toml LICENSE ./
# pyproject.toml names the README; its text is not needed in an image.
RUN touch README.md
COPY LICENSE wheel[s]/* /wheels/

FROM build AS build-cpu
ARG EXTRAS=
RUN pip install --constraint constraints/cpu.txt ".[cpu${EXTRAS:+,$EXTRAS}]"
# Serving does not need tests, nor OpenVINO's telemetry, headers, plugins for GPUs and NPUs, and frontends except ONNX.
RUN cd /opt/fc7/lib/python3*/site-packages \
    && find . -type d -name tests -prune -exec rm -r {} + \
    && if [ -d openvino ]; then \
        pip uninstall --yes openvino-telemetry \
        && rm -r openvino/include openvino/libs/cache.json openvino/libs/libopenvino_intel_[gn]pu_plugin.so \
        && find openvino/libs -name 'libopenvino_*_frontend.so*' ! -name '*_onnx_*' ! -name '*_ir_*' -delete \
        && python -c "from openvino import Core; assert Core().available_devices == ['CPU']"; \
    fi
COPY service service
COPY model_store model_store
COPY index index
RUN pip install --no-deps --force-reinstall . \
    && pip uninstall --yes pip setuptools

FROM build AS build-gpu
ARG EXTRAS=
RUN pip install --constraint constraints/gpu.txt ".[gpu${EXTRAS:+,$EXTRAS}]"
COPY service service
COPY model_store model_store
COPY index index
RUN pip install --no-deps --force-reinstall . \
    && pip uninstall --yes pip setuptools

# TORCH_INDEX: URL of the wheel index with the torch build for your device. Unset, the package registry's build is used.
FROM build AS build-train
ARG TORCH_INDEX=
ARG EXTRAS=
RUN pip install --constraint constraints/cpu.txt --find-links /wheels ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
RUN pip install --constraint constraints/cpu.txt --find-links /wheels ".[cpu,train,import,demo${EXTRAS:+,$EXTRAS}]"
COPY service service
COPY model_store model_store
COPY index index
RUN pip install --no-deps --force-reinstall .

FROM ${BASE_IMAGE} AS runtime
RUN useradd --system --uid 10001 --create-home --home-dir /home/fc7 fc7 \
    && install -d -o fc7 -g fc7 /var/lib/fc7
ENV PATH=/opt/fc7/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    FC7_HOME=/var/lib/fc7 \
    FC7_HOST=0.0.0.0
# By number, so that Kubernetes can tell that it is not root.
USER 10001
WORKDIR /home/fc7
VOLUME /var/lib/fc7
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import os, ssl, urllib.request; urllib.request.urlopen('http%s://127.0.0.1:%s/readyz' % ('s' if os.environ.get('FC7_TLS_CERTIFICATE') else '', os.environ.get('FC7_PORT', '8000')), timeout=2, context=ssl._create_unverified_context())"]
ENTRYPOINT ["fc7"]
CMD ["serve"]

FROM runtime AS train
HEALTHCHECK NONE
COPY --from=build-train /opt/fc7 /opt/fc7
CMD ["--help"]

FROM runtime AS gpu
COPY --from=build-gpu /opt/fc7 /opt/fc7
ENV FC7_DEVICE=cuda

FROM runtime AS cpu
COPY --from=build-cpu /opt/fc7 /opt/fc7
ENV FC7_DEVICE=cpu
