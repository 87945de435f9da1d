import math

from autotune.schedule import ENOUGH, HOPELESS, PATIENCE, Prospect, next_slice


def after(*promises, calls=1, best_ms=1.0, seconds=1.0):
    prospect = Prospect(calls)
    for promise in promises:
        prospect.took(seconds, best_ms, promise)
    return prospect


def test_what_nobody_has_looked_at_comes_first():
    assert next_slice([after(0.5, calls=10**6), Prospect(1)], [True, True]) == 1
    assert Prospect(1).rate == math.inf


def test_trials_go_where_a_second_saves_most():
    # calls x time x chance / seconds: 10 * 1 * 0.1 / 1, 1 * 5 * 0.3 / 1, 1 * 1 * 0.9 / 0.5.
    prospects = [after(0.1, calls=10), after(0.3, best_ms=5.0), after(0.9, seconds=0.5)]
    assert [round(prospect.rate, 6) for prospect in prospects] == [1.0, 1.5, 1.8]
    assert next_slice(prospects, [True, True, True]) == 2
    assert next_slice(prospects, [True, True, False]) == 1
    assert next_slice(prospects, [False, False, False]) is None


def test_the_last_promise_counts_and_an_unknown_one_is_hopeful():
    assert after(0.9, 0.01).promise == 0.01
    assert after(None).promise > after(0.1).promise


def test_a_problem_has_had_enough_only_after_several_small_promises():
    small = ENOUGH / 2
    assert after(*[small] * PATIENCE).enough
    assert not after(*[small] * (PATIENCE - 1)).enough
    assert not after(*[small] * (PATIENCE - 1), ENOUGH * 2).enough
    assert not after(None, *[small] * (PATIENCE - 1)).enough


def test_a_problem_where_nothing_runs_waits_and_is_given_up():
    assert after(None, best_ms=None).rate == 0
    assert not after(*[None] * (HOPELESS - 1), best_ms=None).enough
    assert after(*[None] * HOPELESS, best_ms=None).enough
