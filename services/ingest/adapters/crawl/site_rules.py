"""What the sites of a crawl ask of crawlers: their robots.txt, and the time between two requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from protego import Protego

from services.ingest.engine.file_format import BadContentError
from services.ingest.engine.web_address import canonical, site

AGENT = "tidemill-ingest"
"""The name that robots.txt may mention."""
LONGEST_DELAY_S = 60.0


@dataclass(slots=True)
class _Site:
    robots: Protego
    delay_s: float
    sitemaps: list[str] = field(default_factory=list)
    asked_at: float | None = None


class SiteRules:
    """The rules of all sites of one crawl; each robots.txt is fetched once."""

    def __init__(self, fetch: Callable[[str], str], delay_s: float) -> None:
        """`fetch` gets the text of a robots.txt, empty where there is none; `delay_s` is the least pause."""
        self._fetch, self._delay_s = fetch, delay_s
        self._sites: dict[str, _Site] = {}

    def allows(self, address: str) -> bool:
        """Whether robots.txt allows an address."""
        return bool(self._site(address).robots.can_fetch(address, AGENT))

    def sitemaps(self, address: str) -> list[str]:
        """The sitemaps that the robots.txt beside an address names, those of the same site."""
        return self._site(address).sitemaps

    def pause_s(self, address: str) -> float:
        """Seconds to wait before the site of an address is asked again."""
        found = self._site(address)
        return 0.0 if found.asked_at is None else max(0.0, found.asked_at + found.delay_s - time.monotonic())

    def asked(self, address: str) -> None:
        """Notes that a site has been asked just now."""
        self._site(address).asked_at = time.monotonic()

    def _site(self, address: str) -> _Site:
        host = site(address)
        if host not in self._sites:
            robots = Protego.parse(self._fetch(canonical("/robots.txt", address)))
            named = [canonical(found, address) for found in robots.sitemaps]
            own = [found for found in named if found and site(found) == host]
            self._sites[host] = _Site(robots, max(self._delay_s, _asked_delay(robots, host)), own)
        return self._sites[host]


def _asked_delay(robots: Protego, host: str) -> float:
    delay, rate = robots.crawl_delay(AGENT), robots.request_rate(AGENT)
    asked = max(float(delay or 0.0), rate.seconds / max(1, rate.requests) if rate is not None else 0.0)
    if asked > LONGEST_DELAY_S:
        raise BadContentError(
            "CRAWL_DELAY_TOO_LONG",
            f"robots.txt of {host} asks for {asked:g} s between two requests, more than {LONGEST_DELAY_S:g} s",
        )
    return asked
