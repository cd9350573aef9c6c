"""Counters that several workers share."""

from __future__ import annotations

from shallop_pod.modelserver.metrics import Board


def test_what_workers_count_is_added_up_whoever_is_asked() -> None:
    board = Board(2)
    counted = []
    for worker in (0, 1):
        board.worker = worker
        counters = board.counters_of("iris")
        counters.observe(0.02 * (worker + 1))
        counters.count("predict", 200)
        counted.append(counters)
    counted[1].count("predict", 400)
    text = board.render().decode()
    assert 'request_predict_seconds_count{model_name="iris"} 2' in text
    assert 'request_predict_seconds_bucket{model_name="iris",le="0.025"} 1' in text
    assert 'requests_total{model_name="iris",kind="predict",code="200"} 2' in text
    done, failed, seconds = counted[0].predictions()
    assert (done, failed) == (2, 1)
    assert abs(seconds - 0.06) < 1e-9


def test_a_model_that_comes_back_goes_on_counting() -> None:
    board = Board()
    board.counters_of("a").count("predict", 200)
    board.counters_of("b").count("predict", 500)
    board.counters_of("a").count("predict", 200)
    assert 'requests_total{model_name="a",kind="predict",code="200"} 2' in board.render().decode()
