"""Examples of requests and answers in the OpenAPI document, for readers and for generated clients.

Guarantees: every JSON answer of a successful operation has an example that matches its schema, and every required
parameter and JSON body has one.
Out of scope: examples of errors, which all have the same form (see `service.api.problems`).
"""

from __future__ import annotations

from typing import Any

_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_TIME = "2026-05-04T12:30:00Z"
_BACKUP = "20260504-123000-1f2e"
_PNG = (  # 8 x 8 pixels
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAEElEQVR42mNsYIAAJgaKGAAmCACQtTEKkQAAAABJRU5ErkJggg=="
)
_IMAGE = f"data:image/png;base64,{_PNG}"

_VALUES: dict[str, Any] = {
    # names of properties, or SCHEMA.property where a name has several meanings
    "added": _TIME,
    "architecture": "alexnet",
    "bytes_in_memory": 33554432,
    "bytes_on_disk": 41943040,
    "class": "cat",
    "classes": ["cat", "dog"],
    "compared": 2000,
    "complete": True,
    "covers": 40,
    "created": _TIME,
    "datatype": "BYTES",
    "dimensions": 4096,
    "distance": 12.4,
    "distinct": 2,
    "embedding": [0.0, 1.25, 0.5],
    "ended": _TIME,
    "expires": _TIME,
    "extensions": ["binary_tensor_data"],
    "fast": None,
    "device": None,
    "field": "label",
    "fingerprint": _SHA256[:16],
    "grid": [[0.0, 0.4], [0.1, 1.0]],
    "height": 480,
    "id": "20260504-123000-1f2e",
    "images": 2099,
    "index": 0,
    "key": "cats/tom.jpg",
    "keys": ["cats/tom.jpg", "dogs/rex.jpg"],
    "label": "cat",
    "labeled": 99,
    "labels": ["cat", "dog"],
    "media_type": "image/png",
    "metadata": {"label": "cat"},
    "metrics": {"top1_error": 0.07, "images": 420},
    "migration": None,
    "missing": 0,
    "missing_vectors": 0,
    "mode": "exact",
    "model": "pets:1",
    "name": "pets",
    "next_cursor": None,
    "note": "",
    "notes": [],
    "outdated": 0,
    "path": "/v1/models/pets/1/report/confusion.png",
    "percentile": 62.0,
    "platform": "onnxruntime_onnx",
    "probability": 0.93,
    "sha256": _SHA256,
    "share": 0.8,
    "shape": [-1],
    "size": 34567,
    "status": "alive",
    "thumbnail": "/v1/images/cats%2Ftom.jpg/thumbnail",
    "unknown": False,
    "unlabeled": 2000,
    "updated": _TIME,
    "vectors": 2099,
    "version": 1,
    "versions": ["1"],
    "width": 640,
    "BackupInfo.active": "pets:1",
    "BackupInfo.fc7": "0.1.0",
    "BackupInfo.name": _BACKUP,
    "BackupInfo.path": f"backups/{_BACKUP}",
    "BackupInfo.versions": ["pets:1"],
    "DeviceInfo.name": "cpu",
    "DuplicateGroupInfo.size": 2,
    "FieldInfo.name": "label",
    "FieldInfo.minimum": None,
    "FieldInfo.maximum": None,
    "FieldValueInfo.value": "cat",
    "FieldValueInfo.count": 1050,
    "InferenceAnswer.outputs": [
        {"name": "probabilities", "datatype": "FP32", "shape": [1, 2], "data": [0.93, 0.07]},
    ],
    "InferenceAnswer.model_name": "pets",
    "InferenceAnswer.model_version": "1",
    "InferenceModel.inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
    "InferenceModel.outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}],
    "InferenceTensor.name": "image",
    "InferenceServer.name": "fc7",
    "InferenceServer.version": "0.1.0",
    "JobInfo.parameters": {},
    "JobInfo.total": 1200,
    "MapAnswer.label": [0, 1],
    "MapAnswer.x": [-0.4, 0.7],
    "MapAnswer.y": [0.2, -0.1],
    "NearImageInfo.key": "cats/tom (copy).jpg",
    "OpenAIAnswer.object": "list",
    "OpenAIEmbedding.object": "embedding",
    "Ready.status": "ready",
    "Ready.device": "cpu",
    "ReportFile.name": "confusion.png",
    "SkippedEntry.name": "notes.txt",
    "SkippedEntry.reason": "The file is not an image.",
    "DownloadLink.token": "1777898400.5f70bf18a086007016e948b04aed3b82",
    "SnapshotInfo.name": _BACKUP,
    "SnapshotInfo.path": f"snapshots/{_BACKUP}",
    "SuggestionInfo.labels": [{"label": "cat", "share": 0.5}, {"label": "dog", "share": 0.5}],
    "SuggestionInfo.text": "The labels of its neighbors disagree.",
}
_BY_TYPE: dict[str, Any] = {
    "integer": 1,
    "number": 0.5,
    "string": "...",
    "boolean": True,
    "array": [],
    "object": {},
}
_PARAMETERS: dict[str, Any] = {
    "file": "confusion.png",
    "job": "20260504-123000-1f2e",
    "key": "cats/tom.jpg",
    "name": "pets",
    "model": "pets",
    "threshold": 10,
    "version": 1,
    "where": ["label:cat"],
}
_BODIES: dict[str, Any] = {
    # by operation; all others with a JSON body take an image
    "openai_embeddings": {"model": "pets", "input": _IMAGE},
    "patch_images": {"keys": ["cats/tom.jpg"], "metadata": {"label": "cat"}},
    "patch_image": {"metadata": {"label": "cat"}},
    "label_studio_setup": {"schema": '<View><Choices name="class" toName="image">...</Choices></View>'},
    "label_studio_predict": {"tasks": [{"id": 1, "data": {"image": _IMAGE}}], "label_config": "<View>...</View>"},
    "label_studio_webhook": {"action": "ANNOTATION_CREATED", "task": {"id": 1}, "annotation": {"id": 1}},
    "start_job": {},
}
_INFER = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [_PNG]}]}
_ANSWERS: dict[str, Any] = {
    # of operations whose answer has no schema with names
    "label_studio_health": {"status": "UP", "model_class": "fc7"},
    "label_studio_setup": {"model_version": "pets:1"},
    "label_studio_predict": {
        "results": [{"model_version": "pets:1", "score": 0.93, "result": []}],
        "model_version": "pets:1",
    },
    "label_studio_webhook": {"status": "ok", "result": {"keys": ["cats/tom.jpg"]}},
}


def add_examples(document: dict[str, Any]) -> None:
    """Add `example` to the parameters, JSON bodies and JSON answers of an OpenAPI document."""
    schemas = document["components"]["schemas"]
    for methods in document["paths"].values():
        for operation in methods.values():
            name = operation["operationId"]
            copies = name.endswith(("_backup", "_snapshot"))
            for parameter in operation.get("parameters", []):
                if parameter.get("required"):
                    value = _BACKUP if copies else _PARAMETERS[parameter["name"]]
                    parameter["example"] = str(value) if parameter["schema"].get("type") == "string" else value
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                if kind.endswith("json"):
                    content["example"] = _BODIES.get(name, _INFER if name.endswith("infer") else {"image": _IMAGE})
            for status, answer in operation["responses"].items():
                content = answer.get("content", {}).get("application/json")
                if status.startswith("2") and content:  # a file in JSON has no schema
                    content["example"] = _ANSWERS.get(name) or _example(content["schema"], schemas)


def _example(schema: dict[str, Any], schemas: dict[str, Any], name: str = "") -> Any:
    """Return an example of a schema. name: SCHEMA.property, if it is one."""
    if "$ref" in schema:
        title = schema["$ref"].rpartition("/")[2]
        return {"name": "pets", "version": 1} if title == "ModelName" else _example(schemas[title], schemas)
    if "properties" in schema:
        return {
            key: _example(each, schemas, f"{schema['title']}.{key}")
            for key, each in schema["properties"].items()
            if key in schema.get("required", [])
        }
    if name in _VALUES:
        return _VALUES[name]
    if schema.get("type") == "array" and "$ref" in schema["items"]:
        return [_example(schema["items"], schemas)]
    if "anyOf" in schema:
        schema = schema["anyOf"][0]
    value = schema["enum"][0] if "enum" in schema else _BY_TYPE.get(schema.get("type", ""))
    return _VALUES.get(name.partition(".")[2], value)
