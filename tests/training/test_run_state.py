"""Where a run stands, read back."""

import json
from types import SimpleNamespace

import torch
from accelerate.utils import DistributedType

from mme_hf.data import RecordCursor
from mme_hf.training import RunState, build_optimizer, build_scheduler


def test_each_process_goes_on_where_it_was_itself(tmp_path):
    optimizer = build_optimizer(torch.nn.Linear(2, 2), learning_rate=0.1, weight_decay=0.0, betas=(0.9, 0.95))
    schedule = {"num_warmup_steps": 0, "num_training_steps": 9, "min_learning_rate": 0.0}
    scheduler = build_scheduler(optimizer, **schedule)
    cursors = [RecordCursor(1, 3, 13), RecordCursor(1, 4, 14)]
    state = {"settings": {}, "num_records_seen": 14, "scheduler": {"last_epoch": 7}, "seconds": 5.0}
    contents = {"step": 7, "state": state, "process_states": [cursor.to_dict() for cursor in cursors]}
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "trainer_state.json").write_text(json.dumps(contents))
    for index, cursor in enumerate(cursors):
        process = SimpleNamespace(
            process_index=index, distributed_type=DistributedType.MULTI_CPU, load_state=lambda folder: None
        )
        resumed = RunState.resume(process, tmp_path, "latest", scheduler=scheduler, settings={})
        assert resumed == RunState(step=7, num_records_seen=14, cursor=cursor, seconds=5.0)
        assert scheduler.last_epoch == 7
