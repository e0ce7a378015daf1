{{/* Names and labels. A pod's labels never hold a version: an upgrade would renew pods that it does not touch. */}}

{{- define "solowire.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a role is called. Takes a dict: root, role. */}}
{{- define "solowire.name" -}}
{{- printf "%s-%s" (include "solowire.fullname" .root) .role -}}
{{- end -}}

{{- define "solowire.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 40 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end -}}

{{- define "solowire.labels" -}}
{{ include "solowire.selectorLabels" . }}
app.kubernetes.io/part-of: solowire
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "solowire.podLabels" -}}
{{ include "solowire.selectorLabels" . }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- with .values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "solowire.serviceAccountName" -}}
{{- default (ternary (include "solowire.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "solowire.secretName" -}}
{{- default (printf "%s-secrets" (include "solowire.fullname" .)) .Values.secrets.existingSecret -}}
{{- end -}}

{{/* An image's reference. Takes a dict: image, tag (where the image names none). */}}
{{- define "solowire.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .tag .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "solowire.scheme" -}}
{{- ternary "wss" "ws" .Values.tls.enabled -}}
{{- end -}}
