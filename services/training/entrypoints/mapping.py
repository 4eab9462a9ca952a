"""Messages of the contract to domain objects and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from google.protobuf.json_format import MessageToDict
from tidemill.common.v1 import failure_pb2
from tidemill.training.v1 import run_pb2
from tidemill.training.v1 import training_service_pb2 as pb

from services.kit.errors import InvalidArgumentError
from services.kit.grpc.messages import failure_to, progress_to, timestamp
from services.training.domain.advice import Wishes
from services.training.domain.device import HERE
from services.training.domain.report import Comparison, LossPoint, Metric, Report
from services.training.domain.run import Run, RunState
from services.training.domain.strategies import Strategy
from services.training.domain.students import Distillation, Student
from services.training.domain.tasks import TASKS, VARIANTS, Task
from services.training.domain.training_spec import MIN_SLICE_EXAMPLES, Method, Optimization, Precision, TrainingSpec
from services.training.domain.trials import Trial
from services.training.engine.advising import Advice
from services.training.engine.methods import make_method, make_plugin
from services.training.engine.run_plan import RunPlan

_STATES = {
    RunState.QUEUED: run_pb2.Run.STATE_QUEUED,
    RunState.RUNNING: run_pb2.Run.STATE_RUNNING,
    RunState.SUCCEEDED: run_pb2.Run.STATE_SUCCEEDED,
    RunState.FAILED: run_pb2.Run.STATE_FAILED,
    RunState.CANCELLED: run_pb2.Run.STATE_CANCELLED,
}
_PRECISIONS: dict[int, Precision] = {
    run_pb2.PRECISION_UNSPECIFIED: "fp32",
    run_pb2.PRECISION_FP32: "fp32",
    run_pb2.PRECISION_BF16: "bf16",
    run_pb2.PRECISION_FP16: "fp16",
    run_pb2.PRECISION_AUTO: "auto",
}
_PRECISION_MESSAGES = {
    "fp32": run_pb2.PRECISION_FP32,
    "bf16": run_pb2.PRECISION_BF16,
    "fp16": run_pb2.PRECISION_FP16,
    "auto": run_pb2.PRECISION_AUTO,
}
_STRATEGIES: dict[int, Strategy] = {
    run_pb2.STRATEGY_UNSPECIFIED: "single",
    run_pb2.STRATEGY_SINGLE: "single",
    run_pb2.STRATEGY_DDP: "ddp",
    run_pb2.STRATEGY_FSDP: "fsdp",
    run_pb2.STRATEGY_TP: "tp",
}
_STRATEGY_MESSAGES = {
    # As every spec of earlier releases.
    "single": run_pb2.STRATEGY_UNSPECIFIED,
    "ddp": run_pb2.STRATEGY_DDP,
    "fsdp": run_pb2.STRATEGY_FSDP,
    "tp": run_pb2.STRATEGY_TP,
}


def spec_from(spec: run_pb2.TrainingSpec, trial: run_pb2.Trial | None = None) -> TrainingSpec:
    """The training spec of a message; zeros become the defaults that the proto documents."""
    o = spec.optimization
    return TrainingSpec(
        model_name=spec.model_name,
        base_model=spec.base_model,
        dataset_name=spec.dataset.name,
        dataset_uri=spec.dataset.uri,
        dataset_digest=spec.dataset.digest,
        task=_task_from(spec),
        method=_method_from(spec),
        optimization=Optimization(
            max_steps=o.max_steps,
            epochs=o.epochs,
            batch_size=o.batch_size,
            gradient_accumulation=o.gradient_accumulation or 1,
            learning_rate=o.learning_rate,
            warmup_ratio=o.warmup_ratio,
            weight_decay=o.weight_decay,
            precision=_PRECISIONS[o.precision],
            seed=o.seed,
            checkpoint_every=o.checkpoint_every or 20,
        ),
        # In a fixed order, so that the order in the request does not change the run's digest.
        variants=tuple(name for name in VARIANTS if name in spec.compression.variants),
        max_eval_examples=spec.evaluation.max_examples,
        slices=tuple(sorted(spec.evaluation.slices)),
        min_slice_examples=spec.evaluation.min_slice_examples or MIN_SLICE_EXAMPLES,
        students=tuple(_student_from(student) for student in spec.compression.students),
        distillation=_distillation_from(spec.compression.distillation),
        strategy=_STRATEGIES[spec.strategy],
        processes=spec.processes or 1,
        trial=None if trial is None else Trial(trial.study, trial.validation_share),
    )


def _student_from(message: run_pb2.Student) -> Student:
    # Which precisions there are is a rule of the contract.
    return Student(**{**_options(message), "precision": message.precision or "int8"})


def _distillation_from(message: run_pb2.Distillation) -> Distillation:
    return Distillation(**{name: value for name, value in _options(message).items() if value})


def spec_to(spec: TrainingSpec) -> run_pb2.TrainingSpec:
    """The message of a training spec."""
    o = spec.optimization
    message = run_pb2.TrainingSpec(
        dataset=run_pb2.DatasetReference(name=spec.dataset_name, uri=spec.dataset_uri, digest=spec.dataset_digest),
        base_model=spec.base_model,
        optimization=run_pb2.Optimization(
            max_steps=o.max_steps,
            epochs=o.epochs,
            batch_size=o.batch_size,
            gradient_accumulation=o.gradient_accumulation,
            learning_rate=o.learning_rate,
            warmup_ratio=o.warmup_ratio,
            weight_decay=o.weight_decay,
            precision=_PRECISION_MESSAGES[o.precision],
            seed=o.seed,
            checkpoint_every=o.checkpoint_every,
        ),
        evaluation=run_pb2.Evaluation(
            max_examples=spec.max_eval_examples,
            slices=spec.slices,
            min_slice_examples=spec.min_slice_examples if spec.min_slice_examples != MIN_SLICE_EXAMPLES else 0,
        ),
        compression=run_pb2.Compression(
            variants=spec.variants,
            students=[run_pb2.Student(**asdict(student)) for student in spec.students],
            distillation=run_pb2.Distillation(**asdict(spec.distillation)) if spec.students else None,
        ),
        model_name=spec.model_name,
        strategy=_STRATEGY_MESSAGES[spec.strategy],
        processes=spec.processes if spec.strategy != "single" else 0,
    )
    _set(message, asdict(spec.task))
    options = asdict(spec.method)
    if options["kind"] in message.DESCRIPTOR.fields_by_name:
        _set(message, options)
    else:
        message.plugin.name = options.pop("kind")
        message.plugin.options.update({key: list(v) if isinstance(v, tuple) else v for key, v in options.items()})
    return message


def _set(message: run_pb2.TrainingSpec, options: dict[str, Any]) -> None:
    """Sets the field that is named by `kind` to a message with the other options."""
    field = getattr(message, options.pop("kind"))
    field.SetInParent()
    field.MergeFrom(type(field)(**options))


def _options(message: Any) -> dict[str, Any]:
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}


def _task_from(spec: run_pb2.TrainingSpec) -> Task:
    """The task with the name of the field."""
    name = spec.WhichOneof("task") or ""
    if name not in TASKS:
        raise InvalidArgumentError(f"spec.task: {name or 'nothing'} is not a task of training.", reason="TASK_UNKNOWN")
    return TASKS[name](**_options(getattr(spec, name)))


def _method_from(spec: run_pb2.TrainingSpec) -> Method:
    """The method with the name of the field, its options taken from the message."""
    name = spec.WhichOneof("method") or ""
    if name == "plugin":
        return make_plugin(spec.plugin.name, MessageToDict(spec.plugin.options))
    return make_method(name, _options(getattr(spec, name)) if name else {})


def run_to(run: Run) -> run_pb2.Run:
    """A run as a message."""
    return run_pb2.Run(
        name=run.name,
        create_time=timestamp(run.create_time),
        update_time=timestamp(run.update_time),
        spec=spec_to(run.spec),
        state=_STATES[run.state],
        progress=progress_to(run.progress),
        report=_report_to(run.report) if run.report else None,
        failure=failure_to(run.failure),
        reused=run.reused,
        model_version=run.model_version,
        uri=run.uri,
        warnings=run.warnings,
        # The report has it from then on.
        loss_curve=_points(run.loss_curve) if run.report is None else (),
        trial=run_pb2.Trial(**asdict(run.spec.trial)) if run.spec.trial else None,
    )


def _points(curve: Sequence[LossPoint]) -> list[run_pb2.LossPoint]:
    return [run_pb2.LossPoint(step=point.step, loss=point.loss) for point in curve]


def plan_to(plan: RunPlan) -> pb.PlanTrainingResponse:
    """A memory plan as a message."""
    return pb.PlanTrainingResponse(
        parameters=plan.parameters,
        trainable_parameters=plan.trainable,
        device=plan.machine.kind,
        device_bytes=plan.machine.memory_bytes,
        strategies=[
            pb.StrategyPlan(
                strategy=each.strategy,
                devices=each.devices,
                weights_bytes=each.memory.weights,
                gradients_bytes=each.memory.gradients,
                optimizer_bytes=each.memory.optimizer,
                activations_bytes=each.memory.activations,
                peak_bytes=each.total,
                fits=each.fits,
            )
            for each in plan.strategies
        ],
        sizes=[
            pb.SizePlan(name=each.name, parameters=each.parameters, devices=each.devices or 0) for each in plan.sizes
        ],
        nearest=plan.nearest,
    )


def wishes_from(request: pb.AdviseTrainingRequest) -> Wishes:
    """What is to be served, and the limits."""
    defaults = Wishes("generation")
    return Wishes(
        task=request.task,
        device=request.device or HERE,
        # It is checked there.
        goal=request.goal,  # type: ignore[arg-type]
        base_models=tuple(request.base_models),
        max_input_tokens=request.max_input_tokens or defaults.max_input_tokens,
        max_target_tokens=request.max_target_tokens or defaults.max_target_tokens,
        max_size_bytes=request.max_size_bytes,
        max_latency_ms=request.max_latency_ms,
        max_memory_bytes=request.max_memory_bytes,
        max_quality_loss=request.max_quality_loss if request.HasField("max_quality_loss") else None,
        callers=request.callers or 1,
    )


def advice_to(advice: Advice) -> pb.AdviseTrainingResponse:
    """Advice as a message."""
    return pb.AdviseTrainingResponse(
        device=advice.device.name,
        device_source=advice.device.source,
        device_measured=advice.device.measured,
        goal=advice.goal,
        candidates=[
            pb.AdviceCandidate(
                base_model=each.base_model,
                parameters=each.parameters,
                build=each.build,
                size_bytes=round(each.predicted.size_bytes),
                memory_bytes=round(each.predicted.memory_bytes),
                latency_p95_ms=each.predicted.latency_ms,
                per_second=each.predicted.per_second,
                quality_loss=each.predicted.quality_loss,
                measured_runs=each.measured_runs,
                exceeded=[
                    pb.ExceededLimit(limit=miss.limit, wanted=miss.wanted, predicted=miss.found) for miss in each.misses
                ],
            )
            for each in advice.candidates
        ],
        fits=advice.pick.fits,
        reason=advice.reason,
        spec=spec_to(advice.spec),
        max_quality_loss=advice.max_quality_loss,
        preference=advice.preference,
        replicas=advice.serving.replicas,
        answer_cache_bytes=advice.serving.answer_cache_bytes,
        notes=advice.notes,
    )


def _metric_to(metric: Metric | None) -> failure_pb2.Metric | None:
    if metric is None:
        return None
    return failure_pb2.Metric(
        name=metric.name,
        value=metric.value,
        ci_low=metric.ci_low,
        ci_high=metric.ci_high,
        sample_size=metric.sample_size,
    )


def _comparison_to(found: Comparison | None) -> run_pb2.Comparison | None:
    if found is None:
        return None
    return run_pb2.Comparison(
        base=_metric_to(found.base),
        champion=_metric_to(found.champion),
        tuned=_metric_to(found.tuned),
        over_base=_metric_to(found.over_base),
        over_champion=_metric_to(found.over_champion),
    )


def _report_to(report: Report) -> run_pb2.Report:
    return run_pb2.Report(
        base=_metric_to(report.base),
        tuned=_metric_to(report.tuned),
        difference=_metric_to(report.difference),
        examples=[
            run_pb2.Example(
                record_id=item.record_id,
                input=item.input,
                reference=item.reference,
                base=item.base,
                tuned=item.tuned,
            )
            for item in report.examples
        ],
        variants=[
            run_pb2.Variant(
                precision=item.precision,
                uri=item.uri,
                digest=item.digest,
                size_bytes=item.size_bytes,
                quality=_metric_to(item.quality),
                tokens_per_second=item.tokens_per_second,
                time_to_first_token_ms=item.time_to_first_token_ms,
                examples_per_second=item.examples_per_second,
                latency_p50_ms=item.latency_p50_ms,
                loss=_metric_to(item.loss),
                loss_increase=_metric_to(item.loss_increase),
            )
            for item in report.variants
        ],
        figures=report.figures,
        tuned_loss=_metric_to(report.tuned_loss),
        champion=_metric_to(report.champion),
        over_champion=_metric_to(report.over_champion),
        champion_run=report.champion_run,
        corrections=_comparison_to(report.corrections),
        loss_curve=_points(report.loss_curve),
        slices=[
            run_pb2.Slice(
                attribute=item.attribute,
                value=item.value,
                pooled_values=item.pooled_values,
                examples=item.examples,
                comparison=_comparison_to(item.comparison),
                p_worse=item.p_worse,
            )
            for item in report.slices
        ],
    )
