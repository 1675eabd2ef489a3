{{- /* Names are fixed: Remit is installed once a cluster, and the operator looks its objects up by name. */}}
{{- define "remit.selector" -}}
app.kubernetes.io/name: remit
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "remit.labels" -}}
{{ include "remit.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "remit.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- /* Not empty: the store is PostgreSQL, and there may be several replicas. */}}
{{- define "remit.replicated" -}}
{{- if and .Values.postgres.url .Values.postgres.existingSecret.name -}}
{{- fail "postgres.url and postgres.existingSecret.name: only one of them can say where PostgreSQL is" -}}
{{- end -}}
{{- if or .Values.postgres.url .Values.postgres.existingSecret.name }}true{{ end -}}
{{- if and (not .Values.postgres.url) (not .Values.postgres.existingSecret.name) (gt (int (.Values.replicas | default 1)) 1) -}}
{{- fail (printf "replicas: %d need a store that they share: set postgres.url or postgres.existingSecret.name" (int .Values.replicas)) -}}
{{- end -}}
{{- end }}

{{- define "remit.replicas" -}}
{{ .Values.replicas | default 3 }}
{{- end }}
