"""How `exec` ends: with the command's exit code, or with an error in the server's own words."""

from __future__ import annotations

import json

import pytest

from provisioner.cluster_api import ClusterApiError, _exit_code


def test_success_and_failure_have_a_code() -> None:
    assert _exit_code('{"status": "Success"}', "exec") == 0
    causes = [{"reason": "Other", "message": "x"}, {"reason": "ExitCode", "message": "7"}]
    assert _exit_code(json.dumps({"status": "Failure", "details": {"causes": causes}}), "exec") == 7


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            '{"status": "Failure", "message": "exec failed:\\n no such file", "details": {"causes": [{"message": "x"}]}}',
            "exec x: exec failed: no such file",
        ),
        ('{"status": "Failure", "message": "gone", "details": {"causes": null}}', "exec x: gone"),
        ("", "exec x: the stream ended without an exit code"),
        ("half a {", "exec x: the stream ended without an exit code: 'half a {'"),
        ("null", "exec x: the stream ended without an exit code: 'null'"),
        ("[]", "exec x: the stream ended without an exit code: '[]'"),
    ],
)
def test_what_could_not_be_started_is_told_in_the_servers_words(status: str, said: str) -> None:
    with pytest.raises(ClusterApiError) as raised:
        _exit_code(status, "exec x")
    assert raised.value.message == said
