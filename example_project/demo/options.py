"""What can be chosen on the command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """One run of the demo."""

    orders: int = 30
    workers: int = 2
    concurrency: int = 2
    #: Seconds between two kills, on average; 0 kills nobody.
    kill_every: float = 1.0
    seed: int = 7
    #: Seconds after which unfinished orders count as lost.
    timeout: float = 120.0
    #: Nobody presses the buttons of the front desk but whoever runs the demo.
    by_hand: bool = False
    #: Empty the broker once, when a third of the orders is through.
    flush: bool = False
    #: How the services behave: seconds before the work, share of refusals, share of late answers.
    latency: tuple[float, float] = (0.05, 0.25)
    down: float = 0.03
    slow: float = 0.10
