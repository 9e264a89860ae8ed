{{- define "quire.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "quire.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "quire.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Roles are cluster-wide: two releases of one name in two namespaces must not share them. */ -}}
{{- define "quire.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "quire.fullname" .) -}}
{{- end -}}

{{- define "quire.selectorLabels" -}}
app.kubernetes.io/name: {{ include "quire.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "quire.labels" -}}
{{ include "quire.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: quire
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "quire.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "quire.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "quire.externalMetricsName" -}}
{{- printf "%s-metrics-api" (include "quire.fullname" .) -}}
{{- end -}}

{{- /* Ports of one pod must differ; 8080 serves the probes. */ -}}
{{- define "quire.checkPorts" -}}
{{- $taken := dict "8080" "the probes" -}}
{{- $ports := list (list "metrics.port" .Values.metrics.port) -}}
{{- if .Values.externalMetrics.enabled }}{{ $ports = append $ports (list "externalMetrics.port" .Values.externalMetrics.port) }}{{ end -}}
{{- if .Values.keda.externalScaler.enabled }}{{ $ports = append $ports (list "keda.externalScaler.port" .Values.keda.externalScaler.port) }}{{ end -}}
{{- range $ports -}}
{{- $port := toString (int (index . 1)) -}}
{{- if hasKey $taken $port -}}
{{- fail (printf "%s must not be %s, which serves %s; take another" (index . 0) $port (get $taken $port)) -}}
{{- end -}}
{{- $_ := set $taken $port (index . 0) -}}
{{- end -}}
{{- end -}}

{{- define "quire.registry" -}}
{{- with .Values.global.imageRegistry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- end -}}

{{- define "quire.operatorImage" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag -}}
{{- $separator := ternary "@" ":" (hasPrefix "sha256:" $tag) -}}
{{- include "quire.registry" . }}{{ .Values.image.repository }}{{ $separator }}{{ $tag }}
{{- end -}}

{{- define "quire.engineImage" -}}
{{- default (printf "%squire-engine:%s" (include "quire.registry" .) .Chart.AppVersion) .Values.engine.image -}}
{{- end -}}
