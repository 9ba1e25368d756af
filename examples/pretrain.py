"""Pre-train MME on videos: `accelerate launch examples/pretrain.py`.

Without arguments: the tiny preset on the sample clips, on whatever this machine has. With your own videos:

    accelerate launch examples/pretrain.py --config examples/configs/small.yaml --train_dir my_videos

`--help` lists every flag; recipes are in examples/configs, and flags win over them.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from itertools import islice
from pathlib import Path

# Read when torch is loaded. Data workers and the training step share the CPU's cores; step threads that spin while they
# wait for each other, as libgomp has them do, made a run on two cores seven times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from huggingface_hub.errors import StrictDataclassError

from mme_hf.data import BadVideoLog, ClipSampling, TooManyBadVideosError, VideoRecords, build_clip_loader
from mme_hf.hub import PushError, create_repository, push_folder
from mme_hf.model_card import TrainingFacts, local_name, public_settings, public_value, training_facts, write_model_card
from mme_hf.motion import StoredTracksError
from mme_hf.motion.report import report_motion
from mme_hf.training import (
    BatchInputs,
    NonFiniteLossError,
    PretrainingArguments,
    ProgressReporter,
    RunState,
    announce_result,
    announce_run,
    build_optimizer,
    build_scheduler,
    describe_updates,
    parse_arguments,
    put_earlier_run_aside,
    report_explained_share,
    run_update,
    save_result,
    scaled_learning_rate,
    set_up_logging,
    stopping_in_one_line,
)
from mme_hf.training.processes import num_decoding_workers, use_all_cores
from mme_hf.training.setup import (
    build_model_and_processor,
    check_output_dir,
    describe_targets,
    held_out_sampling,
    load_records,
    open_stored_tracks,
    schedule_lengths,
    settings_of_the_batches,
    train_sampling,
)
from mme_hf.training.sharding import prepare_to_train, whole_model
from mme_hf.visualization import draw_motion_prediction, liveliest_clip
from mme_hf.wording import counted

logger = logging.getLogger("pretrain")

MAX_VIDEOS_TO_DRAW_FROM = 4
FEW_UPDATES = 300  # after which the rows of benchmarks/study explain 3 % of the motion at most
SAMPLE_RECIPE = Path(__file__).parent / "configs" / "samples.yaml"


class Pretraining:
    """One run. All of it is built and checked before the first video is opened."""

    def __init__(self, args: PretrainingArguments):
        self.args = args
        self.output_dir = Path(args.output_dir)
        check_output_dir(args.output_dir)
        self.repository = args.hub_model_id or self.output_dir.resolve().name
        self.accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            log_with=args.report_to if args.with_tracking else None,
            project_config=ProjectConfiguration(str(self.output_dir), logging_dir=str(self.output_dir / "logs")),
        )
        is_main = self.accelerator.is_main_process
        set_up_logging(is_main_process=is_main)
        use_all_cores()
        set_seed(args.seed)
        self.model, self.processor = build_model_and_processor(args)
        self.records, self.held_out_records, self.held_out_fraction = load_records(args)
        self.inputs_of = BatchInputs(self.processor, self.accelerator.device)
        self.stored_tracks = open_stored_tracks(args, self.processor, self.records)
        self.num_workers = num_decoding_workers(args.dataloader_num_workers)
        batches_per_update = self.accelerator.num_processes * args.gradient_accumulation_steps
        self.global_batch_size = args.per_device_train_batch_size * batches_per_update
        self.num_steps, num_warmup_steps = schedule_lengths(args, self.records.num_records, self.global_batch_size)
        optimizer = build_optimizer(
            self.model,
            learning_rate=scaled_learning_rate(args.learning_rate, self.global_batch_size),
            weight_decay=args.weight_decay,
            betas=(args.adam_beta1, args.adam_beta2),
            name=args.optimizer,
        )
        self.scheduler = build_scheduler(
            optimizer,
            num_warmup_steps=num_warmup_steps,
            num_training_steps=self.num_steps,
            min_learning_rate=scaled_learning_rate(args.min_learning_rate, self.global_batch_size),
        )
        self.prepared_model, self.optimizer = prepare_to_train(args, self.accelerator, self.model, optimizer)
        self.settings = settings_of_the_batches(
            args, self.processor, self.records, self.held_out_fraction, self.accelerator.num_processes
        )
        self.state = RunState.resume(
            self.accelerator,
            self.output_dir,
            args.resume_from_checkpoint,
            scheduler=self.scheduler,
            settings=self.settings,
            num_steps=self.num_steps,
        )
        if is_main and not self.state.step:
            put_earlier_run_aside(self.output_dir, "mme_pretraining")
        self.train_loader = self._loader(
            self.records,
            train_sampling(args, self.held_out_fraction),
            shuffle_buffer_size=args.shuffle_buffer_size,
            cursor=self.state.cursor,
        )
        self.bad_videos = self._bad_video_log(self.records, "bad_videos.jsonl")
        held_out = self.held_out_records
        self.bad_held_out_videos = self._bad_video_log(held_out, "bad_held_out_videos.jsonl") if held_out else None
        if args.push_to_hub and is_main:
            self.repository = create_repository(self.repository, **args.hub_options)
        if args.with_tracking:
            settings = {name: str(value) for name, value in public_settings(dataclasses.asdict(args)).items()}
            self.accelerator.init_trackers("mme_pretraining", config=settings)

    def train(self) -> None:
        """Update the model until the last step."""
        args, state = self.args, self.state
        announce_run(
            self.records,
            self.model,
            model_name=args.model_name_or_path or args.preset,
            output_dir=self.output_dir if self.accelerator.is_main_process else None,
            where=f"{self.accelerator.num_processes} x {self.accelerator.device.type}, {self.num_workers} readers each",
            targets=describe_targets(args, self.processor, self.accelerator.device),
            what=describe_updates(args, self.num_steps, self.global_batch_size, args.has_own_data * FEW_UPDATES),
        )
        if args.motion_health and not state.step and self.accelerator.is_main_process:
            sampling = train_sampling(args, self.held_out_fraction)
            device = self.accelerator.device if args.targets_on == "device" else "cpu"
            options = {"sampling": sampling, "stored_tracks": self.stored_tracks, "seed": args.seed, "device": device}
            report_motion(self.records, self.processor, self.output_dir, **options)
        self.started, batches = time.perf_counter(), iter(self.train_loader)
        self.prepared_model.train()
        progress = ProgressReporter(
            self.accelerator,
            self.model.loss_weights,
            num_steps=self.num_steps,
            step=state.step,
            logging_steps=args.logging_steps,
        )
        while state.step < self.num_steps:
            group = list(islice(batches, args.gradient_accumulation_steps))
            report = run_update(
                self.accelerator,
                self.prepared_model,
                self.optimizer,
                group,
                inputs_of=self.inputs_of,
                clips_per_batch=args.per_device_train_batch_size,
                step=state.step + 1,
                max_grad_norm=args.max_grad_norm,
            )
            rate = self.scheduler.get_last_lr()[0]
            self.scheduler.step()
            state.advance(report, group[-1]["next_cursor"])
            self.bad_videos.record(report.bad_videos, num_seen=state.num_records_seen)
            progress.update(report, step=state.step, learning_rate=rate, num_bad_videos=self.bad_videos.num_bad)
            if args.checkpointing_steps and state.step % args.checkpointing_steps == 0:
                self._save_checkpoint()
        progress.close()
        self.state.seconds += time.perf_counter() - self.started

    def finish(self) -> None:
        """Measure on held-out clips; save the model, its processor, a card and a picture."""
        self.model = whole_model(self.model)
        if self.accelerator.is_main_process:
            save_result(self.model, self.processor, self.output_dir, with_remote_code=self.args.with_remote_code)
        results = self._held_out_results() if self.held_out_records else None
        if self.accelerator.is_main_process:
            write_model_card(self.output_dir, self._facts(), results)
            try:
                self._draw()
            except ValueError as error:  # targets that keep no pixels of motion, or no clip that could be read
                logger.warning("no motion.png: %s", error)
            announce_result(self.output_dir, report_to=self.args.report_to if self.args.with_tracking else None)
            for log in filter(None, (self.bad_videos, self.bad_held_out_videos)):
                if log.num_bad:
                    logger.info("%s listed in %s", counted(log.num_bad, "bad video"), log.path)
        self.accelerator.end_training()
        if self.args.push_to_hub and self.accelerator.is_main_process:
            logger.info("pushed to %s", push_folder(self.output_dir, self.repository, **self.args.hub_options))

    def _bad_video_log(self, records: VideoRecords, name: str) -> BadVideoLog:
        return BadVideoLog.for_records(
            records,
            self.output_dir / name,
            max_bad_fraction=self.args.max_bad_fraction,
            on_bad_video=self.args.on_bad_video,
            is_continued=self.state.step > 0,
            is_writer=self.accelerator.is_main_process,
        )

    def _save_checkpoint(self) -> None:
        self.state.save(
            self.accelerator,
            self.output_dir,
            scheduler=self.scheduler,
            settings=self.settings,
            seconds=self.state.seconds + time.perf_counter() - self.started,
            total_limit=self.args.checkpoints_total_limit,
        )

    def _loader(self, records: VideoRecords, sampling: ClipSampling, **options):
        return build_clip_loader(
            records,
            self.processor,
            sampling=sampling,
            targets_on=self.args.targets_on,
            stored_tracks=self.stored_tracks if records is self.records or self.held_out_fraction else None,
            pin_memory=self.accelerator.device.type == "cuda",
            **{
                "batch_size": self.args.per_device_train_batch_size,
                "num_workers": self.num_workers,
                "process_index": self.accelerator.process_index,
                "num_processes": self.accelerator.num_processes,
                "seed": self.args.seed,
                **options,
            },
        )

    def _held_out_results(self) -> dict | None:
        num_batches = -(-self.args.num_baseline_clips // self.global_batch_size) * self.args.gradient_accumulation_steps
        # Training frames alone, but fresh crops and times. A stream is read once: `datasets` sleeps after each pass.
        options = {"seed": self.args.seed + 1, "num_epochs": 1 if self.records.num_records is None else None}
        training_clips = self._loader(self.records, train_sampling(self.args, self.held_out_fraction), **options)
        held_out_clips = self._held_out_loader(self.held_out_records.limited(self.args.max_eval_videos), num_epochs=1)
        batches = [self.inputs_of.each(clips) for clips in (islice(training_clips, num_batches), held_out_clips)]
        shares = report_explained_share(self.accelerator, self.model, *batches, self.bad_held_out_videos)
        explained = {f"held_out/explained_{name}": shares[name] for name in shares or ()}
        self.accelerator.log(explained, step=self.state.step)
        return shares and {"dataset": public_value(self.held_out_records.name), "explained_share": shares}

    def _held_out_loader(self, records: VideoRecords, **options):
        sampling = held_out_sampling(self.args, self.held_out_fraction)
        return self._loader(records, sampling, batch_size=self.args.num_eval_clips, shuffle=False, **options)

    def _draw(self) -> None:
        videos = self.held_out_records or self.records
        loader = self._held_out_loader(videos, process_index=0, num_processes=1, num_workers=0)
        clips = self.inputs_of.each(batch for batch in islice(loader, MAX_VIDEOS_TO_DRAW_FROM) if batch["sources"])
        inputs, source = liveliest_clip(clips, self.model.config.motion_targets)
        kind, updates = "held-out" if self.held_out_records else "training", counted(self.state.step, "update")
        title = f"a {kind} clip of {Path(source).name} after {updates}"
        draw_motion_prediction(self.model, self.processor, inputs, self.output_dir / "motion.png", title=title)

    def _facts(self) -> TrainingFacts:
        return training_facts(
            "pretraining",
            self.args,
            self.records,
            repository=self.repository if self.args.push_to_hub else local_name(self.args.output_dir),
            num_steps=self.state.step,
            global_batch_size=self.global_batch_size,
            seconds=self.state.seconds,
        )


def main() -> None:
    """Run the script; a mistake in the arguments ends it with one line."""
    try:
        run = Pretraining(parse_arguments(PretrainingArguments, sample_recipe=SAMPLE_RECIPE))
    except (ValueError, StrictDataclassError, TooManyBadVideosError, PushError) as error:
        sys.exit(f"pretrain.py: error: {error}")
    errors = (StoredTracksError, NonFiniteLossError, TooManyBadVideosError, PushError)
    with stopping_in_one_line("pretrain.py", run, *errors):
        run.train()
        run.finish()


if __name__ == "__main__":
    main()
