"""The reductions over many devices and over two processes, each run as a process of its own (sharded_checks.py)."""

# Other chunks, and so another order of addition: the worst of all was 3.5e-7.
TOLERANCE = 1e-6


def test_every_form_equals_one_device(on_devices):
    errors = on_devices["errors"]
    assert len(errors) == 13
    assert {name: error for name, error in errors.items() if not error < TOLERANCE} == {}


def test_a_ring_needs_no_more_of_a_device_the_more_there_are(on_devices):
    two, eight = on_devices["memory"]["ring"]
    # A device's 128 queries against 128 keys at a time, whoever's they are: 1.8 times these logits' bytes.
    assert two < 2 * 4 * 128 * 128
    assert eight == two
    gathered = on_devices["memory"]["gather"]
    assert gathered[1] > 3 * gathered[0]
    in_chunks = on_devices["memory in chunks"]
    assert in_chunks[1] == in_chunks[0] < 0.8 * two


def test_global_indices_count_through_all_devices(on_devices):
    assert on_devices["global_indices"] == list(range(24))


def test_two_processes_equal_one_device(two_processes):
    for seen in two_processes:
        assert (seen["processes"], seen["devices"]) == (2, 4)
        assert set(seen["errors"]) == {"ring", "gather"}
        assert max(seen["errors"].values()) < TOLERANCE
