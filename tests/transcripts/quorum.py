"""The quorum format: `committed` and `vote` over cfg=(ids), or over that and cfgj=(ids) as a joint
configuration.

idx=(...) and votes=(...) give one value to each voter in the order in which cfg and cfgj name them, without
repetition; `_` leaves one out. cfgj=zero is an empty second half. As in etcd, results that must be equal to
another computation's are followed by what that one gave when it differs.
"""

from __future__ import annotations

from collections.abc import Mapping

from raftstate.core.quorum import JointConfig, MajorityConfig
from tests.transcripts.datadriven import Directive, FormatError
from tests.transcripts.describe import describe_acked, describe_index, describe_vote_result

COMMANDS = frozenset({"committed", "vote"})

_VOTES = {"y": 2, "n": 1, "_": 0}


class Environment:
    """Judges each directive by itself."""

    def handle(self, directive: Directive) -> str:
        incoming = [int(value) for value in directive.values("cfg") or ()]
        joint = directive.values("cfgj")
        outgoing = [int(value) for value in joint or () if value != "zero"]
        if directive.command == "committed":
            given = [0 if value == "_" else int(value) for value in directive.values("idx") or ()]
        elif directive.command == "vote":
            given = [_VOTES[value] for value in directive.values("votes") or ()]
        else:
            raise FormatError(f"line {directive.line}: unknown command {directive.command}")

        voters = list(dict.fromkeys(incoming + outgoing))
        if len(voters) != len(given):
            ids = " ".join(f"{voter}:{{}}" for voter in sorted(voters))
            values = " ".join(map(str, given))
            return f"error: mismatched input (explicit or _) for voters map[{ids}]: [{values}]"
        known = {voter: value for voter, value in zip(voters, given, strict=True) if value}
        config = JointConfig(MajorityConfig(incoming), MajorityConfig(outgoing))
        if directive.command == "vote":
            return _vote(config, {voter: value == _VOTES["y"] for voter, value in known.items()})
        return _committed_joint(config, known) if joint is not None else _committed(config.incoming, known)


def _vote(config: JointConfig, votes: Mapping[int, bool]) -> str:
    result = config.vote_result(votes)
    mirrored = JointConfig(config.outgoing, config.incoming).vote_result(votes)
    text = f"{describe_vote_result(result)}\n"
    return text if mirrored == result else f"{describe_vote_result(mirrored)} <-- via symmetry\n{text}"


def _committed_joint(config: JointConfig, acked: Mapping[int, int]) -> str:
    index = config.committed_index(acked)
    mirrored = JointConfig(config.outgoing, config.incoming).committed_index(acked)
    text = describe_acked(config.ids(), acked)
    if mirrored != index:
        text += f"{describe_index(mirrored)} <-- via symmetry\n"
    return text + f"{describe_index(index)}\n"


def _committed(config: MajorityConfig, acked: Mapping[int, int]) -> str:
    index = config.committed_index(acked)
    others = {
        "via zero-joint quorum": JointConfig(config).committed_index(acked),
        "via self-joint quorum": JointConfig(config, config).committed_index(acked),
    }
    for voter, own in acked.items():
        if own < index:
            # What is behind the committed index anyway can fall further behind without moving it.
            others[f"overlaying {voter}->{own}"] = config.committed_index({**acked, voter: own - 1})
            others[f"overlaying {voter}->0"] = config.committed_index({**acked, voter: 0})
    text = describe_acked(config, acked)
    text += "".join(f"{describe_index(other)} <-- {how}\n" for how, other in others.items() if other != index)
    return text + f"{describe_index(index)}\n"
