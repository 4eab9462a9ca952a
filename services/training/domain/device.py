"""What a model is served on: its memory, and how fast it runs builds; measured, or assumed for a class of devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.training.domain.tasks import VARIANTS, Architecture, VariantName

_GB = 10**9


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass through a model computes and reads, and how many milliseconds it took; zero if not measured.

    `layers` are blocks, `flops` floating-point operations of products, `read_bytes` weights that are read once, and
    `moved` the values between the products.
    """

    layers: float
    flops: float
    read_bytes: float
    moved: float
    ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Speed:
    """Milliseconds of a pass: for each block, each 10^9 operations, 10^9 bytes and 10^9 values."""

    per_layer: float
    per_gflop: float
    per_gbyte: float
    per_gvalue: float

    def ms(self, cost: Pass) -> float:
        """The time of a pass."""
        return (
            self.per_layer * cost.layers
            + self.per_gflop * cost.flops / 1e9
            + self.per_gbyte * cost.read_bytes / 1e9
            + self.per_gvalue * cost.moved / 1e9
        )


Speeds = Mapping[VariantName, Speed]


@dataclass(frozen=True, slots=True)
class Device:
    """A device that serves.

    A classifier answers with one of the `cores`, so as many texts are answered side by side; a writer takes all of
    them for a token. `tail` is the ratio of the 95th percentile of a time to its median. `source` says where the
    figures come from, for a person to read. On `small` devices the smallest build is preferred.
    """

    name: str
    memory_bytes: int
    cores: int
    speeds: Mapping[Architecture, Speeds]
    tail: float
    source: str
    measured: bool = False
    small: bool = False


HERE = "here"
"""The machine of the training service, which is measured."""


def _assumed(gflops: float, cores: int, gbytes: float, int8: float, layer_ms: float) -> Mapping[Architecture, Speeds]:
    """Speeds from what one core computes in fp32 and all of them read, sustained; int8 multiplies the classifier's.

    A writer's weights are widened before they are multiplied, so its products are those of fp32 whatever the build.
    """
    values = 4.0
    encoder = {
        name: Speed(layer_ms, 1000 / gflops / (int8 if name == "int8" else 1), 1000 / gbytes, values * 1000 / gbytes)
        for name in VARIANTS
    }
    causal = {
        name: Speed(layer_ms, 1000 / gflops / cores, 1000 / gbytes, values * 1000 / gbytes / cores) for name in VARIANTS
    }
    return {"encoder": encoder, "causal": causal}


DEVICES: Mapping[str, Device] = {
    "edge": Device(
        "edge",
        4 * _GB,
        4,
        _assumed(19, 4, 10, int8=2, layer_ms=0.1),
        1.3,
        "assumed: a board of 4 Cortex-A76 at 2.4 GHz with LPDDR4X, half of its peak",
        small=True,
    ),
    "mobile": Device(
        "mobile",
        2 * _GB,
        2,
        _assumed(38, 2, 25, int8=2, layer_ms=0.05),
        1.3,
        "assumed: 2 large cores of a phone at 3 GHz with LPDDR5, two fifths of their peak, 2 GB for the application",
        small=True,
    ),
    "server": Device(
        "server",
        64 * _GB,
        16,
        _assumed(90, 16, 100, int8=3, layer_ms=0.03),
        1.3,
        "assumed: 16 cores at 2.5 GHz with AVX-512 VNNI and 8 channels of memory, half of their peak",
    ),
}
"""Classes of devices that no one has measured here: what their makers publish, and a share of it that is usual."""
