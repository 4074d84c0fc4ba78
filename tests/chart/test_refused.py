"""Values that are refused, with a message that names the value."""

import pytest

from tests.chart.render import CHART, VALUES, run_helm

pytestmark = pytest.mark.chart

REFUSED = {
    # by the schema
    "replicas=2": "replicas",
    "replicaCount=two": "/replicaCount",
    "image.tga=1": "tga",
    "image.digest=latest": "/image/digest",
    "config.signals.helpful.knid=preference": "knid",
    "config.signals.helpful.kind=pairwise": "/config/signals/helpful/kind",
    "config.limits.max_items=0": "/config/limits/max_items",
    "config.keys=/etc/keys.yaml": "'keys'",
    "config.insecure=true": "'insecure'",
    "logs.level=verbose": "/logs/level",
    "service.port=0": "/service/port",
    "preStopSeconds=0": "/preStopSeconds",
    "autoscaling.kind=cpu": "/autoscaling/kind",
    "autoscaling.queueTokens=-1": "/autoscaling/queueTokens",
    "gpu.count=-1": "/gpu/count",
    "modelCache.enabled=true,modelCache.models[0].id=a/b": "revision",
    "modelCache.enabled=true,modelCache.models[0].id=a/b;rm,modelCache.models[0].revision=c": "/modelCache/models/0/id",
    "probes.startup.httpGet.path=/": "httpGet",
    # by the templates
    "image.repository=": "image.repository: is required",
    "config.signals=null": "config.signals: is required",
    "keys.existingSecret=": "keys.existingSecret: is required",
    "insecure=true": "insecure: true does not go with",
    "autoscaling.kind=keda": "autoscaling.keda.prometheusAddress: is required",
    "autoscaling.kind=hpa,autoscaling.minReplicas=5": "autoscaling.minReplicas: is above",
    "serviceMonitor.enabled=true": "serviceMonitor.keySecret.name: is required",
    "ingress.enabled=true": "ingress.host: is required",
    "ingress.enabled=true,ingress.host=a.example": "ingress.tlsSecret: is required",
    "gateway.enabled=true": "gateway.parentRefs: name the Gateway",
    "modelCache.models[0].id=a/b,modelCache.models[0].revision=c": "modelCache.models: needs modelCache.enabled",
}


def test_wrong_values_are_refused() -> None:
    for given, message in REFUSED.items():
        done = run_helm(4, "template", "r", CHART, "--values", VALUES["minimal"], "--set", given)
        assert done.returncode != 0, given
        assert message in done.stderr, given
    for given, message in list(REFUSED.items())[::7]:
        done = run_helm(3, "template", "r", CHART, "--values", VALUES["minimal"], "--set", given)
        assert done.returncode != 0, given
        assert message.strip("/'").rsplit("/", 1)[-1] in done.stderr, given
