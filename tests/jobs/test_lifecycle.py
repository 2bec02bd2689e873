"""The life of a job and of an instance as tables."""

from __future__ import annotations

import pytest

from cloister.jobs.lifecycle import (
    INSTANCE,
    JOB,
    STATUS,
    InstanceEvent,
    InstanceState,
    JobEvent,
    JobState,
    after,
    render_mermaid,
)

TERMINAL = {JobState.COMPLETED, JobState.FAILED, JobState.STOPPED}


def test_every_state_has_a_row_for_every_event() -> None:
    assert set(JOB) == {(state, event) for state in JobState for event in JobEvent}
    assert set(INSTANCE) == {(state, event) for state in InstanceState for event in InstanceEvent}
    assert set(STATUS) == set(JobState)


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_nothing_leads_out_of_a_terminal_state(state: JobState) -> None:
    assert all(after(state, event) is state for event in JobEvent)


@pytest.mark.parametrize("state", sorted(set(JobState) - TERMINAL))
def test_every_state_can_reach_an_end_and_only_through_releasing(state: JobState) -> None:
    reached, todo = {state}, [state]
    while todo:
        at = todo.pop()
        for event in JobEvent:
            to = after(at, event)
            if to in TERMINAL and at not in TERMINAL:
                assert at.value.startswith("Releasing")
                assert event is JobEvent.RELEASED
            if to not in reached:
                reached.add(to)
                todo.append(to)
    assert reached & TERMINAL


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ("allocated started succeeded uploaded released", "Completed"),
        ("allocated started failed ended uploaded released", "Failed"),
        ("allocated started lost ended uploaded released", "Failed"),
        ("allocated started timeout ended uploaded released", "Stopped"),
        ("allocated started stop ended uploaded released", "Stopped"),
        ("allocated stop ended uploaded released", "Stopped"),
        ("stop released", "Stopped"),
        ("failed released", "Failed"),
        ("allocated failed ended uploaded released", "Failed"),
        ("allocated started succeeded stop uploaded released", "Stopped"),
        ("allocated started succeeded failed released", "Failed"),
        ("allocated started failed stop ended uploaded released", "Failed"),
        ("allocated started succeeded uploaded stop released", "Completed"),
    ],
)
def test_the_events_of_a_job_lead_to_its_end(events: str, end: str) -> None:
    state = JobState.PENDING
    for event in events.split():
        assert state not in TERMINAL
        state = after(state, JobEvent(event))
    assert STATUS[state] == end


def test_a_stopped_job_is_shown_as_stopping_until_its_end() -> None:
    state = after(JobState.RUNNING, JobEvent.STOP)
    while state not in TERMINAL:
        assert STATUS[state] == "Stopping"
        happy = (JobEvent.ENDED, JobEvent.UPLOADED, JobEvent.RELEASED)
        state = next(to for event in happy if (to := after(state, event)) is not state)
    assert STATUS[state] == "Stopped"


def test_the_diagrams_are_made_from_the_tables() -> None:
    text = render_mermaid()
    assert "    Running --> Uploading: succeeded" in text
    assert "    Failed --> [*]" in text
    assert text.count("```mermaid") == 2
