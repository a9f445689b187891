from clearhead.train import MetricsLog, plot_metrics


def test_rewinding_drops_what_will_be_computed_again(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(5):
        log.append({"step": step, "loss": 5.0 - step})
    log.append({"step": 5, "val_loss": 1.0, "bits_per_byte": 2.0})
    with log.path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert len(log.read()) == 6
    log.rewind(3)
    assert [record["step"] for record in log.read()] == [0, 1, 2]
    log.append({"step": 3, "loss": 2.0})
    log.sync()
    assert len(log.read()) == 4


def test_the_picture_is_a_png_also_of_an_empty_run(tmp_path):
    path = plot_metrics(tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
    log = MetricsLog(tmp_path)
    log.append({"step": 0, "loss": 5.0})
    log.append({"step": 1, "val_loss": 4.0, "bits_per_byte": 2.0})
    empty = path.read_bytes()
    assert plot_metrics(tmp_path).read_bytes() != empty
