"""What happens to a run: each blow takes the site, the driver, and chance, and returns when the driver is at its end."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.e2e.kills.site import Driver, Site

# Ctrl-C is heard at once; the task under way may have to come to its end.
STOPS_WITHIN = 90.0
# A machine was away: done without it, failed or set aside; or refused beforehand, where no etcd of the others ran to go on with.
AWAY = (0, 1, 4)


@dataclass(frozen=True, slots=True)
class Struck:
    """What the blow did.

    Attributes:
        what: in words.
        code: the driver's exit code.
        codes: those that it may have.
        attempts: how many times `apply` may be typed until it ends with 0.
        left: command lines of what outlived the driver.
    """

    what: str
    code: int
    codes: tuple[int, ...]
    attempts: int = 1
    left: tuple[str, ...] = ()


def everything(site: Site, driver: Driver, _chance: random.Random) -> Struck:
    """The controller dies: driver, Ansible, SSH, all at once."""
    driver.process.kill()
    site.kill_all()
    return Struck("SIGKILL for the driver and all its children", driver.end(), (-signal.SIGKILL, 0))


def driver_alone(site: Site, driver: Driver, chance: random.Random) -> Struck:
    """The driver dies, Ansible's processes live on as they can; the next `apply` comes at once, or a little later."""
    driver.process.kill()
    code = driver.end()
    time.sleep(chance.choice((0.0, 0.0, 1.0)))
    # names without directories: the record is kept, and another machine has others
    left = tuple(" ".join(word.rpartition("/")[2] for word in line.split()[:3])[:100] for line in site.processes().values())
    return Struck("SIGKILL for the driver alone", code, (-signal.SIGKILL, 0), left=left)


def ctrl_c(_site: Site, driver: Driver, _chance: random.Random) -> Struck:
    """SIGINT."""
    if not driver.ended:
        driver.process.send_signal(signal.SIGINT)
    return Struck("SIGINT", driver.end(STOPS_WITHIN), (130, 0))


def power(site: Site, driver: Driver, chance: random.Random) -> Struck:
    """A machine loses its power, and is started again after a moment."""
    name = chance.choice(sorted({*site.layout.machines}))
    machine = site.machine(name)
    machine.power_off()
    time.sleep(chance.uniform(0, 3))
    machine.start(wait=False)
    code = driver.end()
    return Struck(f"power cut of {name}", code, AWAY, attempts=2)


def cable(site: Site, driver: Driver, chance: random.Random) -> Struck:
    """A machine's cable is out for some seconds."""
    name, seconds = chance.choice(sorted({*site.layout.machines})), chance.uniform(2, 12)
    machine = site.machine(name)
    machine.cut_link()
    healer = threading.Timer(seconds, machine.heal_link)
    healer.start()
    try:
        code = driver.end()
    finally:
        healer.join()
    return Struck(f"cable of {name} out for {seconds:.1f} s", code, AWAY, attempts=2)


Blow = Callable[[Site, Driver, random.Random], Struck]
BLOWS: dict[str, Blow] = {
    "everything": everything,
    "driver": driver_alone,
    "ctrl-c": ctrl_c,
    "power": power,
    "cable": cable,
}
