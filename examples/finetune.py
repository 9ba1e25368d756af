"""Fine-tune a video classifier: `accelerate launch examples/finetune.py`.

    accelerate launch examples/finetune.py --model_name_or_path outputs/pretrain \
        --train_dir my_videos/train --validation_dir my_videos/validation

A folder holds a folder of videos for each class. `--help` lists every flag; the defaults are the published recipe;
`--config examples/configs/finetune-tiny.yaml` is for a small set and a CPU. Flags win over a recipe.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from itertools import islice
from pathlib import Path

# Read when torch is loaded; see pretrain.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from huggingface_hub.errors import StrictDataclassError
from tqdm.contrib.logging import logging_redirect_tqdm

from mme_hf.data import BadVideoLog, TooManyBadVideosError, VideoRecords
from mme_hf.data.labelled_clips import ViewSampling, build_labelled_loader
from mme_hf.hub import PushError, create_repository, push_folder
from mme_hf.model_card import TrainingFacts, local_name, public_settings, public_value, training_facts, write_model_card
from mme_hf.training import (
    NonFiniteLossError,
    ProgressReporter,
    RunState,
    announce_result,
    build_average,
    build_optimizer,
    build_scheduler,
    describe_updates,
    parse_arguments,
    put_earlier_run_aside,
    run_update,
    save_result,
    scaled_learning_rate,
    set_up_logging,
    stopping_in_one_line,
)
from mme_hf.training.finetuning_arguments import FinetuningArguments
from mme_hf.training.finetuning_setup import (
    announce_finetuning,
    build_classifier,
    build_mixed_inputs,
    choose_what_is_trained,
    exported_weights,
    load_labelled_records,
    settings_of_finetuning,
)
from mme_hf.training.mixing import UnlabelledVideoError
from mme_hf.training.processes import num_decoding_workers, use_all_cores
from mme_hf.training.setup import check_output_dir, schedule_lengths
from mme_hf.training.sharding import prepare_to_train, whole_model
from mme_hf.training.validation import BestModel, Judge
from mme_hf.wording import counted

logger = logging.getLogger("finetune")


class Finetuning:
    """One run. All of it is built and checked before the first video is opened."""

    def __init__(self, args: FinetuningArguments):
        self.args = args
        self.output_dir = Path(args.output_dir)
        check_output_dir(args.output_dir)
        self.repository = args.hub_model_id or self.output_dir.resolve().name
        self.accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            log_with=args.report_to if args.with_tracking else None,
            project_config=ProjectConfiguration(str(self.output_dir), logging_dir=str(self.output_dir / "logs")),
        )
        self.is_main = self.accelerator.is_main_process
        set_up_logging(is_main_process=self.is_main)
        use_all_cores()
        set_seed(args.seed)
        self.records, self.validation_records = load_labelled_records(args)
        self.model, self.processor = build_classifier(args, self.records)
        choose_what_is_trained(args, self.model)
        self.inputs_of = build_mixed_inputs(args, self.model.config.num_labels, self.accelerator.device)
        self.num_workers = num_decoding_workers(args.dataloader_num_workers)
        batches_per_update = self.accelerator.num_processes * args.gradient_accumulation_steps
        self.global_batch_size = args.per_device_train_batch_size * batches_per_update
        self.num_steps, num_warmup_steps = schedule_lengths(args, self.records.num_records, self.global_batch_size)
        optimizer = build_optimizer(
            self.model,
            learning_rate=scaled_learning_rate(args.learning_rate, self.global_batch_size),
            weight_decay=args.weight_decay,
            betas=(args.adam_beta1, args.adam_beta2),
            layer_decay=args.layer_decay,
        )
        self.scheduler = build_scheduler(
            optimizer,
            num_warmup_steps=num_warmup_steps,
            num_training_steps=self.num_steps,
            min_learning_rate=scaled_learning_rate(args.min_learning_rate, self.global_batch_size),
        )
        self.average = build_average(self.model, args.ema_decay, device=self.accelerator.device)
        # What is judged and saved.
        self.result_model = self.model if self.average is None else self.average.module
        self.prepared_model, self.optimizer = prepare_to_train(args, self.accelerator, self.model, optimizer)
        self.best = BestModel(keeps_weights=self.is_main)
        self.accelerator.register_for_checkpointing(*filter(None, (self.best, self.average)))
        self.settings = settings_of_finetuning(
            args, self.processor, self.records, self.validation_records, self.accelerator.num_processes
        )
        self.state = RunState.resume(
            self.accelerator,
            self.output_dir,
            args.resume_from_checkpoint,
            scheduler=self.scheduler,
            settings=self.settings,
            num_steps=self.num_steps,
        )
        if self.is_main and not self.state.step:
            put_earlier_run_aside(self.output_dir, "mme_finetuning")
        videos_per_batch = args.per_device_train_batch_size // args.samples_per_video
        order = {"cursor": self.state.cursor, "shuffle_buffer_size": args.shuffle_buffer_size}
        self.train_loader = self._loader(self.records, args.training_views, videos_per_batch=videos_per_batch, **order)
        self.bad_videos = self._bad_video_log(self.records, "bad_videos.jsonl")
        self.judge = self._judge_of(self.validation_records) if self.validation_records else None
        if args.push_to_hub and self.is_main:
            self.repository = create_repository(self.repository, **args.hub_options)
        if args.with_tracking:
            settings = {name: str(value) for name, value in public_settings(dataclasses.asdict(args)).items()}
            self.accelerator.init_trackers("mme_finetuning", config=settings)

    def train(self) -> None:
        """Update the model until the last step, or until it has not become better for long enough."""
        args, state = self.args, self.state
        announce_finetuning(
            args,
            self.model,
            self.records,
            self.validation_records,
            output_dir=self.output_dir if self.is_main else None,
            where=f"{self.accelerator.num_processes} x {self.accelerator.device.type}, {self.num_workers} readers each",
            what=describe_updates(args, self.num_steps, self.global_batch_size),
        )
        self.started, batches = time.perf_counter(), iter(self.train_loader)
        self.prepared_model.train()
        progress = ProgressReporter(
            self.accelerator, {}, num_steps=self.num_steps, step=state.step, logging_steps=args.logging_steps
        )
        while state.step < self.num_steps and not (self.judge and self.judge.has_lost_patience):
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
            rate = max(self.scheduler.get_last_lr())
            self.scheduler.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
            state.advance(report, group[-1]["next_cursor"])
            self.bad_videos.record(report.bad_videos, num_seen=state.num_records_seen)
            num_bad, epoch = self.bad_videos.num_bad, self._epoch_of(state.step)
            progress.update(report, step=state.step, learning_rate=rate, num_bad_videos=num_bad, epoch=epoch)
            if self.judge and self.judge.is_due(state.step):
                if self.judge.judge(state.step) and self.is_main:
                    self._save_model(self.output_dir, self.best.weights)
                progress.restart_clock()
            # After judging, so that who resumes knows the result.
            if args.checkpointing_steps and state.step % args.checkpointing_steps == 0:
                self._save_checkpoint()
        progress.close()
        self.state.seconds += time.perf_counter() - self.started
        if state.step < self.num_steps:
            logger.info("stopped early: not better in %s", counted(args.early_stopping_patience, "evaluation"))

    def finish(self) -> None:
        """Save the best model and the last one, what the best one scored, and a card."""
        last, results = exported_weights(whole_model(self.result_model)), None
        if self.is_main:
            if self.best.result is None:
                self._save_model(self.output_dir, last)
            else:
                self._save_model(self.output_dir, self.best.weights)
                self._save_model(self.output_dir / "last", last)
                views = f"{self.args.num_eval_segments} x {self.args.num_eval_crops}"
                what = {"views": views, "dataset": public_value(self.validation_records.name)}
                results = {**dataclasses.asdict(self.best.result), **what}
            write_model_card(self.output_dir, self._facts(), results)
            announce_result(self.output_dir, report_to=self.args.report_to if self.args.with_tracking else None)
            for log in filter(None, (self.bad_videos, self.judge and self.judge.bad_videos)):
                if log.num_bad:
                    logger.info("%s listed in %s", counted(log.num_bad, "bad video"), log.path)
        self.accelerator.end_training()
        if self.args.push_to_hub and self.is_main:
            logger.info("pushed to %s", push_folder(self.output_dir, self.repository, **self.args.hub_options))

    def _judge_of(self, records: VideoRecords) -> Judge:
        args, views = self.args, self.args.validation_views
        videos_per_batch = max(1, args.per_device_eval_batch_size // views.clips_per_video)
        order = {"shuffle": False, "num_epochs": 1, "videos_per_batch": videos_per_batch}
        return Judge(
            accelerator=self.accelerator,
            model=self.result_model,
            batches=self._loader(records, views, **order),
            bad_videos=self._bad_video_log(records, "bad_validation_videos.jsonl"),
            best=self.best,
            weights_of=exported_weights,
            epoch_of=self._epoch_of,
            clips_per_forward=args.per_device_eval_batch_size,
            num_steps=self.num_steps,
            eval_steps=args.eval_steps,
            patience=args.early_stopping_patience,
        )

    def _epoch_of(self, step: int) -> float | None:
        if self.records.num_records is None:
            return None
        return step * self.global_batch_size / (self.records.num_records * self.args.samples_per_video)

    def _save_model(self, folder: Path, weights: dict) -> None:
        options = {"with_remote_code": self.args.with_remote_code, "state_dict": {**weights}}  # which is emptied
        save_result(self.model, self.processor, folder, **options)

    def _save_checkpoint(self) -> None:
        self.state.save(
            self.accelerator,
            self.output_dir,
            scheduler=self.scheduler,
            settings=self.settings,
            seconds=self.state.seconds + time.perf_counter() - self.started,
            total_limit=self.args.checkpoints_total_limit,
        )

    def _bad_video_log(self, records: VideoRecords, name: str) -> BadVideoLog:
        return BadVideoLog.for_records(
            records,
            self.output_dir / name,
            max_bad_fraction=self.args.max_bad_fraction,
            on_bad_video=self.args.on_bad_video,
            is_continued=self.state.step > 0,
            is_writer=self.is_main,
        )

    def _loader(self, records: VideoRecords, sampling: ViewSampling, **options):
        return build_labelled_loader(
            records,
            self.processor,
            sampling=sampling,
            num_workers=self.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            seed=self.args.seed,
            **options,
        )

    def _facts(self) -> TrainingFacts:
        return training_facts(
            "finetuning",
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
        run = Finetuning(parse_arguments(FinetuningArguments))
    except (ValueError, StrictDataclassError, TooManyBadVideosError, PushError) as error:
        sys.exit(f"finetune.py: error: {error}")
    errors = (NonFiniteLossError, TooManyBadVideosError, UnlabelledVideoError, PushError)
    with stopping_in_one_line("finetune.py", run, *errors):
        with logging_redirect_tqdm():
            run.train()
        run.finish()


if __name__ == "__main__":
    main()
