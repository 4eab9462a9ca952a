"""Asks a loaded version what its build was asked when it was made, over Triton's own protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from services.inference.domain.model import ModelVersion
from services.kit.engine import INVALID
from services.kit.labels import labels_answer
from services.kit.probes import Probes, spans_answer, vector_answer
from services.serving.adapters.triton_errors import DIED, triton_unavailable
from services.serving.adapters.triton_tensors import (
    MAX_BATCH,
    add_prompt,
    add_request_id,
    add_sampling,
    add_texts,
    contents_of,
    float_rows,
    piece_of,
    spans_of_text,
    texts_of,
)
from services.serving.domain.answer import Prompt, Sampling, Task

_ANSWER_S = 120.0
_OUTPUTS = {
    Task.TEXT_CLASSIFICATION: "label",
    Task.MULTI_LABEL_CLASSIFICATION: "labels_json",
    Task.TOKEN_CLASSIFICATION: "spans_json",
    Task.TEXT_EMBEDDING: "embedding",
}


def ask(stub: Any, version: ModelVersion, probes: Probes) -> Sequence[str]:
    """See `ModelServer.answers`.

    Raises:
        grpc.RpcError: Triton does not answer.
        UnavailableError: the model's process does not.
    """
    if version.build.task is Task.GENERATION:
        return [_written(stub, version, text, probes.max_tokens) for text in probes.texts]
    texts, output = probes.texts, _OUTPUTS[version.build.task]
    found = [
        answer
        for at in range(0, len(texts), MAX_BATCH)
        for answer in _read(stub, version, texts[at : at + MAX_BATCH], output)
    ]
    if output == "labels_json":
        return [labels_answer(json.loads(text)) for text in found]
    if output == "spans_json":
        return [spans_answer((span.start, span.end, span.label) for span in spans_of_text(text)) for text in found]
    return found


def _read(stub: Any, version: ModelVersion, texts: Sequence[str], output: str) -> Sequence[str]:
    request = pb.ModelInferRequest(model_name=version.server_model)
    add_texts(request, "text", texts, [len(texts), 1])
    request.outputs.add(name=output)
    try:
        contents = contents_of(stub.ModelInfer(request, timeout=_ANSWER_S))
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return [error.details() or ""] * len(texts)
        raise
    if not contents:
        raise triton_unavailable(version.server_model, DIED)
    if output == "embedding":
        return [vector_answer(row) for row in float_rows(contents[output], len(texts))]
    return list(texts_of(contents[output]))


def _written(stub: Any, version: ModelVersion, text: str, max_tokens: int) -> str:
    request = pb.ModelInferRequest(model_name=version.server_model)
    add_prompt(request, Prompt(text=text))
    add_sampling(request, Sampling(max_tokens=max_tokens))
    add_request_id(request)
    pieces: list[str] = []
    # To its end: a stream that is cancelled can crash Triton (docs/adr/0057).
    for response in stub.ModelStreamInfer(iter([request]), timeout=_ANSWER_S):
        if error := response.error_message:
            if not error.startswith(INVALID):
                raise triton_unavailable(version.server_model, error)
            pieces.append(error)
        elif response.infer_response.outputs:
            pieces.append(piece_of(response.infer_response).text)
    if not pieces:
        raise triton_unavailable(version.server_model, DIED)
    return "".join(pieces)
