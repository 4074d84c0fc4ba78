{{/* The name of the release's objects. */}}
{{- define "assay.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels by which the pods of the service are selected. They never change, because a Deployment's selector cannot. */}}
{{- define "assay.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: service
{{- end -}}

{{/* Labels of objects; call it with a dictionary of `root` and `component`. */}}
{{- define "assay.labels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "assay.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{- $device := ternary "cuda" "cpu" (gt (int .Values.gpu.count) 0) -}}
{{ .Values.image.repository }}:{{ default (printf "%s-%s" .Chart.AppVersion $device) .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "assay.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "assay.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "assay.scheme" -}}
{{ ternary "HTTPS" "HTTP" (ne .Values.tls.existingSecret "") }}
{{- end -}}

{{- define "assay.claim" -}}
{{ default (printf "%s-models" (include "assay.fullname" .)) .Values.modelCache.existingClaim }}
{{- end -}}

{{/* The name of the models that a job downloads: another list is another job, since a job cannot be changed. */}}
{{- define "assay.models" -}}
{{ toJson .Values.modelCache.models | sha256sum | trunc 10 }}
{{- end -}}

{{/* The service's own drain time after SIGTERM, in whole seconds; tests/chart compares the default. */}}
{{- define "assay.drainSeconds" -}}{{ ceil (dig "lifecycle" "drain_s" 30 .Values.config) }}{{- end -}}

{{/* Where pods of this chart run, and as whom. */}}
{{- define "assay.scheduling" -}}
serviceAccountName: {{ include "assay.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Errors that a schema cannot express. */}}
{{- define "assay.check" -}}
{{- if not .Values.image.repository -}}
{{- fail "image.repository: is required, because no image is published; build one with the Dockerfile and push it" -}}
{{- end -}}
{{- if not .Values.config.signals -}}
{{- fail "config.signals: is required; `assay inspect DIR` prints the configuration of a checkpoint" -}}
{{- end -}}
{{- if and (not .Values.keys.existingSecret) (not .Values.insecure) -}}
{{- fail "keys.existingSecret: is required; make the key file by `assay keys add NAME --scope score`, or set insecure: true if the network is protected otherwise" -}}
{{- end -}}
{{- if and .Values.keys.existingSecret .Values.insecure -}}
{{- fail "insecure: true does not go with keys.existingSecret; remove one of them" -}}
{{- end -}}
{{- if and (eq .Values.autoscaling.kind "keda") (not .Values.autoscaling.keda.prometheusAddress) -}}
{{- fail "autoscaling.keda.prometheusAddress: is required with autoscaling.kind: keda" -}}
{{- end -}}
{{- if and (ne .Values.autoscaling.kind "none") (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas: is above autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled .Values.keys.existingSecret (not .Values.serviceMonitor.keySecret.name) -}}
{{- fail "serviceMonitor.keySecret.name: is required, because the service has keys; make one by `assay keys add prometheus --scope metrics`" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
{{- fail "ingress.host: is required with ingress.enabled" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.tlsSecret) -}}
{{- fail "ingress.tlsSecret: is required, because API keys must not cross a network in plain text" -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRefs) -}}
{{- fail "gateway.parentRefs: name the Gateway of the route" -}}
{{- end -}}
{{- if and .Values.modelCache.models (not .Values.modelCache.enabled) -}}
{{- fail "modelCache.models: needs modelCache.enabled: true" -}}
{{- end -}}
{{- end -}}
