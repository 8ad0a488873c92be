"""Tests that cannot run on one FreeBSD host with its own commands: each by name, and why."""

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
    "the kernel would have to be another: in a plain jail, without a module, or Linux": """
        tests/test_tunnel.py::test_a_plain_jail_is_told_before_anything_is_said
        tests/test_tunnel.py::test_a_kernel_without_gif_is_told_with_the_remedy
        tests/test_tunnel.py::test_another_system_is_told
        tests/test_udp.py::test_a_kernel_without_netgraph_is_told_with_the_remedy
        """,
    "namespaces of Linux: its own clean-up, users, clocks, mounts": """
        tests/test_careless_parent.py::test_who_is_not_root_is_told_before_anything_is_sent
        tests/test_dtcpauth.py::test_a_store_that_cannot_be_written_is_told_in_one_line
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
    "what is larger than the MTU of the far end is dropped by Linux's wire only": """
        tests/test_trial.py::test_large_packets_are_lost_on_the_way
        """,
    "words, devices and files that only Linux has": """
        tests/test_careless_parent.py::test_a_careless_parent_changes_nothing[a full log]
        tests/test_careless_parent.py::test_a_pid_file_that_cannot_be_had_is_named_before_anything_is_sent[a device]
        tests/test_lab_hands.py::test_what_the_readme_says_is_shown_when_it_is_typed
        tests/test_lab_leaves_nothing.py::test_names_come_from_the_hosts_file_only
        tests/test_rc.py::test_who_may_not_look_is_told_so_by_status
        tests/test_name_service.py::test_what_will_pass_is_told_from_what_will_not
        tests/test_trial.py::test_a_server_that_ends_and_lines_that_cannot_be_shown
        """,  # noqa: E501
    "127.0.0.2 is an address of this host on Linux only": """
        tests/test_end_of_conversation.py::test_the_goodbye_is_read_to_the_end
        tests/test_end_of_conversation.py::test_the_goodbye_has_a_limit
        tests/test_end_of_conversation.py::test_a_login_waits_for_the_end_of_the_one_before
        tests/test_end_of_conversation.py::test_but_not_for_ever_and_goes_on_reading
        tests/test_end_of_conversation.py::test_nor_at_all_when_the_server_has_ended_already
        tests/test_end_of_conversation.py::test_nor_when_our_address_has_gone
        tests/test_end_of_conversation.py::test_a_server_of_ours_may_hand_the_tunnel_over
        tests/test_end_of_conversation.py::test_and_when_it_does_not_it_hears_a_goodbye
        tests/test_end_of_conversation.py::test_it_is_told_the_key_of_a_tunnel_through_which_packets_pass
        tests/test_end_of_conversation.py::test_a_killed_client_leaves_somebody_who_reads_to_the_end
        """,
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
