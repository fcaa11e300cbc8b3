"""An upgrade under way: one stage after the other, each behind its gate; what fails is put back on the version it had."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from provisioner import leave, members, plays, steps
from provisioner import session as sessions
from provisioner.cluster_api import ClusterApi, ClusterApiError
from provisioner.config import Cluster, Node, Role
from provisioner.errors import ApplyError, ArtifactError, BadInput, ProvisionerError, WaitTimeout
from provisioner.lifecycle import drain
from provisioner.plan import Plan
from provisioner.render import CachedArtifact
from provisioner.session import Session
from provisioner.upgrade import gates, workloads
from provisioner.upgrade.course import Course
from provisioner.upgrade.skew import Hop, Version
from provisioner.upgrade.stages import API_SERVERS, BEFORE_NODES, MACHINES, NODES, Stage
from provisioner.upgrade.workloads import Agent
from provisioner.wait import NotYet, wait_until

AGAIN = "`provisioner upgrade` goes on where this run stopped"
READY_SECONDS = 180.0
# Machines that are drained side by side.
AT_A_TIME = 32

Cache = Mapping[str, Mapping[str, CachedArtifact]]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited for others' pods, in seconds, and whether those that nobody replaces are evicted."""

    drain: float = 300.0
    workloads: float = 300.0
    force: bool = False


def at(cluster: Cluster, version: Version) -> Cluster:
    """The same cluster with another Kubernetes version."""
    return cluster.model_copy(update={"kubernetes": cluster.kubernetes.model_copy(update={"version": str(version)})})


def carry_out(session: Session, course: Course, patience: Patience, *, skip_verify: bool = False) -> Session:
    """Bring every machine to the course's last version.

    Args:
        session: looked at, with the first hop's version and plan.
        course: what ``chart`` found.
        patience: with others' pods.
        skip_verify: leave out the proof at the end.

    Raises:
        ProvisionerError: some machine failed; it was put back where that was possible, and the message says how to go on.
    """
    caches = _caches(session, course)
    session.display.plan([row for hop in course.hops for row in _rows(session, hop, course)])
    session.display.plan([("verify", "Prove the cluster works")])
    if course.running.mixed:
        course = gates.settled(session, course, seconds=patience.workloads)
    for number, hop in enumerate(course.hops):
        if number:
            fresh = replace(session, cluster=at(session.cluster, hop.target), cache=caches[hop.target], plan=Plan())
            session = steps.read_state(fresh)
            refuse_more(session)
            members.refuse_quorum_loss(session, members.listing(session))
        session = _Run(course, patience, caches).hop(session, hop)
        # what a machine that fails in the next hop is put back on
        course = replace(course, running=course.running.after(hop.target))
    if skip_verify:
        session.display.finish("verify", state="skipped")
        return session
    session.display.start("verify")
    session = steps.prove(session)
    session.display.finish("verify")
    return session


def refuse_more(session: Session) -> None:
    """An upgrade is no time for machines to come and go. Pure.

    Raises:
        BadInput: cluster.yaml says so all the same.
    """
    coming = [join.node.name for join in session.joining] + list(session.tokens)
    going = [leaver.name for leaver in session.leaving]
    if coming or going:
        raise BadInput(
            f"cluster.yaml also has machines come or go ({', '.join(dict.fromkeys((*coming, *going)))}): nothing was changed",
            hint="set `kubernetes.version` to what runs now, `provisioner apply`, and upgrade then",
        )


def _rows(session: Session, hop: Hop, course: Course) -> list[tuple[str, str]]:
    before = [(_row(hop, stage.name), f"{hop.target}: {stage.title}") for stage in BEFORE_NODES]
    waves = [(_row(hop, _names(wave)), f"{hop.target}: {_names(wave)}") for wave in course.waves]
    order = [*reversed(waves), *reversed(before)] if hop.back else [*before, *waves]
    return [*order, (_row(hop, "objects"), f"{hop.target}: the cluster's own objects")]


def _row(hop: Hop, name: str) -> str:
    return f"{hop.target} {name}"


def _names(nodes: Iterable[Node]) -> str:
    return ", ".join(node.name for node in nodes)


def _caches(session: Session, course: Course) -> dict[Version, Cache]:
    """The artifacts of every version on the way, and of those that run: at hand before anything is changed.

    Raises:
        ArtifactError: a version on the way cannot be had.
    """
    found = {hop.target: sessions.fetch(replace(session, cluster=at(session.cluster, hop.target))).cache for hop in course.hops}
    for version in {*course.running.apiservers.values(), *course.running.kubelets.values()} - found.keys():
        try:
            found[version] = sessions.fetch(replace(session, cluster=at(session.cluster, version))).cache
        except (ArtifactError, BadInput) as error:
            session.display.say(f"warning: a machine that fails cannot be put back on {version}: {error.message}")
    return found


@dataclass(frozen=True, slots=True)
class _Run:
    course: Course
    patience: Patience
    caches: Mapping[Version, Cache] = field(repr=False)

    def hop(self, session: Session, hop: Hop) -> Session:
        """Everything to one version."""
        with session.api() as api:
            waves = list(self.course.waves)
            if hop.back:
                for wave in reversed(waves):
                    self._wave(session, api, hop, wave)
            for stage in reversed(BEFORE_NODES) if hop.back else BEFORE_NODES:
                self._stage(session, api, hop, stage)
            if not hop.back:
                self._require_servers(session, api, hop)
                for wave in waves:
                    self._wave(session, api, hop, wave)
            row = _row(hop, "objects")
            session.display.start(row)
            session = steps.settle(steps.apply_objects(session))
            self._await_whole(api, "the cluster's own objects")
            session.display.finish(row)
        return session

    # --- stages ------------------------------------------------------------------------------------------------

    def _stage(self, session: Session, api: ClusterApi, hop: Hop, stage: Stage) -> None:
        row = _row(hop, stage.name)
        part = stage.part(session.plan, {node.name for node in session.nodes})
        if not part:
            session.display.finish(row, state="skipped")
            return
        session.display.start(row)
        # one machine after the other with all that it needs: what fails on the first is not on the disk of the second
        down = {change.host for change in part.changes if change.kind == "unit" and change.action.startswith("start")}
        hosts = sorted({change.host for change in part.changes}, key=lambda name: (name not in down, name))
        for group in [hosts] if stage is MACHINES else [[name] for name in hosts]:
            if failed := _play(session, stage, stage.part(part, group)):
                self._give_up(session, hop, stage, failed)
        if stage is API_SERVERS:
            planes = [node for node in session.nodes if node.has(Role.CONTROL_PLANE)]
            wait_until(
                f"every API server ready with {hop.target}",
                lambda: gates.all_served(planes, api, hop.target),
                seconds=READY_SECONDS,
                hint=AGAIN,
            )
        session.display.finish(row)

    def _require_servers(self, session: Session, api: ClusterApi, hop: Hop) -> None:
        """No kubelet moves before the last API server has, also where one is away: it could meet that one.

        Raises:
            ApplyError: names it.
        """
        for node in session.cluster.control_planes:
            try:
                gates.all_served([node], api, hop.target)
            except NotYet as error:
                raise ApplyError(
                    f"{error}: no kubelet goes to {hop.target} before every API server has",
                    hint=f"bring {node.name} back, and `provisioner upgrade` goes on; where it is gone for good, "
                    f"`provisioner node remove {node.name} --unreachable` first",
                ) from None

    def _wave(self, session: Session, api: ClusterApi, hop: Hop, wave: Sequence[Node]) -> None:
        row = _row(hop, _names(wave))
        part = NODES.part(session.plan, {node.name for node in wave})
        hosts = {change.host for change in part.changes}
        todo = [node for node in wave if node.name in hosts]
        for node in wave:
            # an earlier run was killed after its kubelet was ready
            if node.name not in hosts:
                _uncordon(api, node.name)
        if not todo:
            session.display.finish(row, state="skipped")
            return
        session.display.start(row)
        # agents that were not Ready before are nobody's proof
        excused = frozenset(agent for node in todo for agent in workloads.unready_agents(api, node.name))
        self._drain(session, api, todo)
        failed = _play(session, NODES, part)
        good = [node.name for node in todo if node.name not in failed]
        failed |= self._unready(api, good, hop.target, excused)
        for node in todo:
            if node.name not in failed:
                _uncordon(api, node.name)
        if failed:
            self._give_up(session, hop, NODES, failed, api=api, excused=excused)
        self._await_whole(api, _names(wave))
        session.display.finish(row)

    def _drain(self, session: Session, api: ClusterApi, nodes: Sequence[Node]) -> None:
        stop = threading.Event()

        def empty(node: Node) -> ProvisionerError | None:
            try:
                leave.mark(api, node.name, leave.UPGRADING)
                drain.drain(
                    api,
                    node.name,
                    seconds=self.patience.drain,
                    force=self.patience.force,
                    say=session.display.say,
                    purpose=drain.UPGRADED,
                    stop=stop,
                )
            except ProvisionerError as error:
                return error
            return None

        with ThreadPoolExecutor(max_workers=min(len(nodes), AT_A_TIME), thread_name_prefix="drain") as pool:
            try:
                errors = [error for error in pool.map(empty, nodes) if error is not None]
            except BaseException:
                # Ctrl-C meets this thread alone
                stop.set()
                raise
        if errors:
            for node in nodes:
                _uncordon(api, node.name)
            raise errors[0]

    def _await_whole(self, api: ClusterApi, after: str) -> None:
        hint = f"look at its pods; {AGAIN}, and takes no account then of what is not Ready in time when it begins"
        gates.await_whole(api, self.course.workloads, after, seconds=self.patience.workloads, hint=hint)

    def _unready(
        self, api: ClusterApi, names: Collection[str], version: Version, excused: frozenset[Agent]
    ) -> dict[str, ProvisionerError]:
        """Nodes that are not Ready with a version in time, with the reason; each still cordoned."""
        late: dict[str, str] = {}

        def ready() -> None:
            late.clear()
            late.update({name: why for name in names if (why := gates.not_yet(api, name, version, excused))})
            if late:
                raise NotYet("; ".join(f"{name}: {why}" for name, why in late.items()))

        try:
            wait_until(f"Ready with {version}", ready, seconds=READY_SECONDS, retry_on=(ClusterApiError,))
        except WaitTimeout as error:
            # without a reason the API itself was not there to ask
            reasons = late or dict.fromkeys(names, error.message)
            return {name: ApplyError(f"{name}: not Ready within {READY_SECONDS:g} s: {why}") for name, why in reasons.items()}
        return {}

    # --- back --------------------------------------------------------------------------------------------------

    def _give_up(
        self,
        session: Session,
        hop: Hop,
        stage: Stage,
        failed: Mapping[str, ProvisionerError],
        *,
        api: ClusterApi | None = None,
        excused: frozenset[Agent] = frozenset(),
    ) -> None:
        """Put machines back on the version that they had, and end.

        Raises:
            ApplyError: always: with the machines, why they failed, and what became of them.
        """
        became = {name: self._put_back(session, stage, name, api, excused) for name in failed}
        first = next(iter(failed.values()))
        raise ApplyError(
            f"{hop.target}: {first.message}; {'; '.join(f'{name} {end}' for name, end in became.items())}",
            details=tuple(line for error in failed.values() for line in (error.message, *error.details)),
            hint=f"mend {', '.join(failed)}; {AGAIN}",
        )

    def _put_back(self, session: Session, stage: Stage, name: str, api: ClusterApi | None, excused: frozenset[Agent]) -> str:
        """What became of a machine, in words."""
        version = self._had(session, stage, name)
        if version is None or version not in self.caches:
            return "stays as it is" + (", cordoned" if api else "")
        session.display.say(f"{name}: back to {version}")
        old = replace(
            session,
            cluster=at(session.cluster, version),
            cache=self.caches[version],
            scope=frozenset({name}),
            set_aside={},
            plan=Plan(),
        )
        try:
            old = steps.compare(old)
            failed = _play(old, stage, stage.part(old.plan, {name}))
            if not failed and api:
                failed = self._unready(api, [name], version, excused)
        except ProvisionerError as error:
            failed = {name: error}
        if failed:
            session.display.say(f"warning: {next(iter(failed.values())).message}")
            return f"could not be put back on {version}" + (", and stays cordoned" if api else "")
        if api:
            _uncordon(api, name)
        return f"runs {version} again"

    def _had(self, session: Session, stage: Stage, name: str) -> Version | None:
        """The version of a stage's parts on a machine before; None where it is the new one already, or is not known."""
        running, target = self.course.running, Version.of(session.cluster.kubernetes.version)
        server, kubelet = running.apiservers.get(name), running.kubelets.get(name)
        if stage is NODES:
            found = kubelet
        elif server is not None and server != target:
            found = server
        elif kubelet is not None and kubelet.minor >= target.minor - 1:
            # the last part of a machine to move: what moves before it was this version, too
            found = kubelet
        else:
            found = min(running.apiservers.values())
        return None if found == target else found


def _play(session: Session, stage: Stage, part: Plan) -> dict[str, ProvisionerError]:
    """Carry a stage's part of the plan out; what failed, by machine."""
    mine = replace(session, plan=part)
    if steps.lacks_packages(mine):
        mine = steps.install_packages(mine)
    sessions.pack(mine)
    try:
        # the wave is the batch: what is drained together is changed together
        together = {"node_batch": "100%", "node_gate": True} if stage is NODES else {}
        tally = plays.play(mine, stage.playbooks, variables=together)
    finally:
        sessions.discard(mine)
    failures = [*tally.failures, *tally.aside.values()]
    without_packages = {name: error for name, error in mine.set_aside.items() if name not in session.set_aside}
    return {**without_packages, **{failure.host: plays.explained(failure) for failure in failures}}


def _uncordon(api: ClusterApi, name: str) -> None:
    """Let pods be placed again, unless it was an administrator who had forbidden it."""
    node = api.get({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    if node is not None and leave.is_ours(node):
        leave.welcome_back(api, name)


__all__ = ["AGAIN", "Patience", "at", "carry_out", "refuse_more"]
