"""Takes reports of dead processes for tests of the data plane."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Reports:
    """Implements `services.serving.app.ports.Deaths`."""

    models: list[str] = field(default_factory=list)
    generations: list[int] = field(default_factory=list)
    now: int = 0

    def generation(self, model: str) -> int:
        return self.now

    def report(self, model: str, generation: int) -> None:
        self.models.append(model)
        self.generations.append(generation)

    def back_s(self, model: str) -> float:
        return 7.0
