{{- define "sandd.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "sandd.secret" -}}
{{ .Values.existingSecret | default (include "sandd.name" .) }}
{{- end }}

{{- define "sandd.labels" -}}
app.kubernetes.io/name: sandd
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "sandd.selector" -}}
app.kubernetes.io/name: sandd
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
