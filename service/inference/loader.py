"""Loading a model version for serving: memory check, sessions, reference for novelty, warm-up and batch queue.

Guarantees: another version is loaded only if enough memory is available. A version that fails to warm up is closed.
Out of scope: deciding which versions are loaded (see `model_pool`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from model_store.artifact import OPENVINO, Artifact
from model_store.errors import PrecisionNotFoundError
from model_store.memory import available, return_freed_memory
from model_store.novelty.reference import load_reference
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner, engine_of
from service.errors import MemoryShortError, RunnerDeadError
from service.inference.admission import BatchLimits
from service.inference.batcher import Batcher
from service.inference.explaining import LazyExplainer
from service.inference.memory import needed_to_load
from service.inference.model_pool import Serving, key_of

MakeRunner = Callable[[Artifact, RunnerOptions], Runner]


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """Loads versions for serving.

    make_runner: creates a Runner (tests pass a subclass). on_run: called with the rows and seconds of each run.
    on_death: called with the version's key (see `key_of`) and the error when a model stops working.
    """

    make_runner: MakeRunner
    options: RunnerOptions
    limits: BatchLimits
    on_run: Callable[[int, float], None]
    on_death: Callable[[str, RunnerDeadError], None]

    def load(self, artifact: Artifact, *, check_memory: bool) -> Serving:
        """Return the version, ready to answer, in the precision and the engine that it was opened for.

        Raises PrecisionNotFoundError if the version has no files in the precision of the options, MemoryShortError, and
        the errors of `make_runner`.
        """
        memory = available()
        needed = needed_to_load(artifact)
        if check_memory and memory is not None and memory < needed:
            raise MemoryShortError(artifact.id, needed, memory)
        stamps, key = artifact.stamps(), key_of(artifact)
        runner = self.make_runner(artifact, self._options_for(artifact))
        try:
            reference = load_reference(runner.artifact)
            # OpenVINO needs no more memory for large batches, because the convolutions run image by image.
            batch = 1 if runner.engine == OPENVINO else self.limits.max_batch
            runner.warm_up((1, batch * runner.streams))
        except BaseException:
            runner.close()
            raise
        return_freed_memory()  # packing the weights used more than is needed from now on
        batcher = Batcher(
            runner.run,
            self.limits,
            measure=None if reference is None else reference.measure,
            cores=runner.options.threads if runner.device == "cpu" else None,
            streams=runner.streams,
            on_run=self.on_run,
            on_death=lambda error: self.on_death(key, error),
        )
        return Serving(key, runner.artifact, runner, batcher, stamps, LazyExplainer(runner), reference)

    def _options_for(self, artifact: Artifact) -> RunnerOptions:
        precision = self.options.precision
        if precision is not None and precision not in artifact.precisions:
            raise PrecisionNotFoundError(artifact.id, precision, artifact.precisions)
        # Both differ from the options if the version computed the searched vectors with other settings.
        options = replace(self.options, precision=artifact.precision)
        if not artifact.depends_on_engine or artifact.engine == engine_of(options):
            return options
        if artifact.engine == OPENVINO:
            return replace(options, engine="openvino", device="cpu", cuda_graphs=False, tensorrt=None)
        return replace(options, engine="onnxruntime")


def changed_files(serving: Serving) -> list[str]:
    """Return the names of the files whose size or modification time changed since the version was loaded."""
    stamps = serving.artifact.stamps()
    return [name for name, stamp in stamps.items() if serving.file_stamps.get(name) != stamp]
