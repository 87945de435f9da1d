import pytest

from autotune.data import UsageError
from autotune.protocol import Protocol, objective_of, preference, protocol_at

SPELLINGS = {
    "wall-throughput-2": Protocol("wall", "throughput"),
    "wall-latency-2": Protocol("wall", "latency"),
    "cudagraph-throughput-2": Protocol("cudagraph", "throughput"),
    "eager-throughput-2": Protocol("eager", "throughput"),
    "eager-latency-2": Protocol("eager", "latency"),
}


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_protocol_has_one_spelling(text):
    assert str(SPELLINGS[text]) == text
    assert Protocol.parse(text) == SPELLINGS[text]
    assert objective_of(text) == SPELLINGS[text].objective


@pytest.mark.parametrize("text", ["wall-1", "cudagraph-coldL2-1"])
def test_older_names_rank_by_throughput_and_are_not_this_version(text):
    assert objective_of(text) == "throughput"
    with pytest.raises(UsageError, match="wall-throughput-2"):
        Protocol.parse(text)


def test_protocols_of_other_versions_and_of_tables_have_an_objective_too():
    assert objective_of("wall-throughput-3") == objective_of("table-throughput-1") == "throughput"
    assert objective_of("eager-latency-1") == "latency"
    with pytest.raises(UsageError, match="wall-throughput-2"):
        Protocol.parse("wall-throughput-3")


def test_the_newest_version_is_preferred_then_graphs():
    names = ["eager-throughput-2", "wall-1", "cudagraph-throughput-2", "eager-throughput-10"]
    assert sorted(names, key=preference) == [names[3], names[2], names[0], names[1]]


@pytest.mark.parametrize("text", ["", "wall", "wall-throughput", "Wall-throughput-2", "wall-2"])
def test_other_text_is_refused(text):
    with pytest.raises(UsageError, match="protocol"):
        objective_of(text)


def test_a_graph_has_no_latency_and_words_are_checked():
    with pytest.raises(UsageError, match="eager"):
        Protocol("cudagraph", "latency")
    with pytest.raises(UsageError, match="sundial"):
        Protocol("sundial", "throughput")
    with pytest.raises(UsageError, match="fame"):
        Protocol("wall", "fame")


def test_throughput_ranks_by_the_median_and_latency_by_the_tail():
    samples = [float(ms) for ms in range(1, 102)]  # 1 .. 101: the quantile q is 1 + 100 q
    assert Protocol("wall", "throughput").score(samples) == 51.0
    assert Protocol("wall", "latency").score(samples) == 96.0
    rarely_slow, steady = [1.0] * 90 + [9.0] * 10, [2.0] * 100
    for objective, first in (("throughput", rarely_slow), ("latency", steady)):
        assert min((rarely_slow, steady), key=Protocol("eager", objective).score) is first


def test_each_place_has_its_protocol():
    assert str(protocol_at("cpu")) == str(protocol_at("cpu", eager=True)) == "wall-throughput-2"
    assert str(protocol_at("cpu", "latency")) == "wall-latency-2"
    assert str(protocol_at("cuda:0")) == "cudagraph-throughput-2"
    assert str(protocol_at("cuda:1", eager=True)) == "eager-throughput-2"
    assert str(protocol_at("cuda:0", "latency")) == "eager-latency-2"
