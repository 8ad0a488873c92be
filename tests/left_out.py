"""What cannot be tried on one FreeBSD host with its own commands: each test by name, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

NAMES = {
    "the commands that stand in for FreeBSD's on Linux are tried, or run in the test itself": """
        tests/test_faults.py::test_whatever_fails_the_host_is_as_it_was
        tests/test_faults.py::test_a_command_that_is_missing
        tests/test_killed.py::test_in_every_step_of_every_plan
        tests/test_lab_monitor.py
        tests/test_lab_neighbours.py
        tests/test_lab_netgraph.py
        tests/test_lab_speaks_freebsd.py
        tests/test_lab_leaves_nothing.py::test_two_internets_do_not_meet
        """,
    "the kernel would have to be another: in a plain jail, or without a module": """
        tests/test_tunnel.py::test_a_plain_jail_is_told_before_anything_is_said
        tests/test_tunnel.py::test_a_kernel_without_gif_is_told_with_the_remedy
        tests/test_udp.py::test_a_kernel_without_netgraph_is_told_with_the_remedy
        """,
    "namespaces of Linux: its own clean-up, users, clocks": """
        tests/test_careless_parent.py::test_who_is_not_root_is_told_before_anything_is_sent
        tests/test_lab_leaves_nothing.py::test_nothing_is_left_when_a_process_of_the_run_is_killed
        tests/test_lab_leaves_nothing.py::test_nothing_is_left_when_the_supervisor_is_killed_during_the_start
        tests/test_soak.py
        """,
    "/proc and prlimit(2) of Linux show or limit a process from outside": """
        tests/test_host_changes.py::test_an_interface_that_is_destroyed_under_us_is_made_anew
        tests/test_password.py::test_the_password_is_in_no_argument_and_no_environment
        tests/test_secret.py
        tests/test_server_faults.py::test_no_descriptor_is_left_for_a_tunnel_over_udp
        tests/test_speaker.py::test_it_has_no_privileges_and_no_files
        tests/test_speaker.py::test_no_generation_of_it_has_the_password
        tests/test_speaker.py::test_a_stopped_one_does_not_keep_us_from_ending
        tests/test_speaker.py::test_one_that_is_stopped_is_replaced
        tests/test_speaker.py::test_its_death_is_noticed_at_once_and_the_tunnel_comes_back
        tests/test_speaker.py::test_it_says_goodbye_when_its_client_is_killed
        """,
    "words, devices and files that only Linux has": """
        tests/test_careless_parent.py::test_a_careless_parent_changes_nothing[a full log]
        tests/test_careless_parent.py::test_a_pid_file_that_cannot_be_had_is_named_before_anything_is_sent[a device]
        tests/test_lab_leaves_nothing.py::test_names_come_from_the_hosts_file_only
        tests/test_rc.py::test_who_may_not_look_is_told_so_by_status
        tests/test_name_service.py::test_what_will_pass_is_told_from_what_will_not
        """,  # noqa: E501
    "shellcheck needs a Haskell compiler here, and Linux has had its say": """
        tests/test_port.py::test_shellcheck_has_nothing_to_say
        """,
}
DIALECT = "the dialect of 13.2, which the commands of this machine do not speak"


def why(item: pytest.Item) -> str | None:
    """Why a test is left out, if it is."""
    for reason, names in NAMES.items():
        if any(_is(item.nodeid, name.strip()) for name in names.strip().splitlines()):
            return reason
    in_lab = item.get_closest_marker("lab") is not None
    if in_lab and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
        return DIALECT if item.callspec.params.get("release") == "13.2" else None
    return None


def _is(test: str, name: str) -> bool:
    return test == name or test.startswith((f"{name}::", f"{name}["))


def summary(reasons: Iterable[str]) -> list[str]:
    """A line for each reason, with the number of tests."""
    return [
        f"left out on FreeBSD: {count} test{'s'[: count > 1]}: {reason}"
        for reason, count in Counter(reasons).items()
    ]
