{{- define "fc7.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "fc7.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fc7.labels" -}}
{{ include "fc7.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "fc7.secret" -}}
{{- .Values.apiKeys.existingSecret | default (include "fc7.name" .) -}}
{{- end -}}

{{- define "fc7.claim" -}}
{{- .Values.persistence.existingClaim | default (include "fc7.name" .) -}}
{{- end -}}
