"""The call of a function is read out of an answer's text, wherever the pieces begin and end."""

from __future__ import annotations

import pytest

from services.serving.domain.tool_calls import CallDelta, CallReader

ARGUMENTS = '{"city": "K}\\n</tool_cal\\"ln", "n": {"a": 1}}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'


def read(pieces: list[str]) -> tuple[str, list[CallDelta], bool]:
    reader, text, deltas = CallReader(), "", list[CallDelta]()
    for said, parts in (*map(reader.push, pieces), reader.flush()):
        text += said
        deltas += parts
    return text, deltas, reader.complete


@pytest.mark.parametrize("before", ["", "Let me <see>. <tool", "3 < 4, "])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_call_is_the_same_in_any_pieces(before: str, size: int) -> None:
    answer = before + CALL
    text, deltas, complete = read([answer[at : at + size] for at in range(0, len(answer), size)])
    assert (text, complete) == (before, True)
    assert deltas[0].name == "get_weather"
    assert not any(delta.name for delta in deltas[1:])
    assert "".join(delta.arguments for delta in deltas) == ARGUMENTS


@pytest.mark.parametrize("answer", ["", "no call", "a <tool_cal", "<", "<tool_call"])
def test_text_stays_whole(answer: str) -> None:
    assert read(list(answer)) == (answer, [], False)


def test_a_call_that_was_cut_is_not_complete() -> None:
    text, deltas, complete = read(list(CALL[:-4]))
    assert (text, complete, deltas[0].name) == ("", False, "get_weather")
    assert "".join(delta.arguments for delta in deltas).startswith(ARGUMENTS)
    assert read(list(CALL[:20])) == ("", [], False)
