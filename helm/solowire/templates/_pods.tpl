{{/* What pods of all roles have in common. Each takes a dict: root, role, values (of the role). */}}

{{- define "solowire.podSpec" -}}
serviceAccountName: {{ include "solowire.serviceAccountName" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with default .root.Values.priorityClassName .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $spread := include "solowire.topologySpread" . | trim }}
{{- if $spread }}
topologySpreadConstraints:
  {{- $spread | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "solowire.topologySpread" -}}
{{- $labels := include "solowire.selectorLabels" . }}
{{- range $key, $name := dict "host" "kubernetes.io/hostname" "zone" "topology.kubernetes.io/zone" }}
{{- $how := get $.root.Values.topologySpread $key }}
{{- if ne $how "off" }}
- topologyKey: {{ $name }}
  maxSkew: 1
  whenUnsatisfiable: {{ $how }}
  labelSelector:
    matchLabels:
      {{- $labels | nindent 6 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The environment of router, gateways and shards. What the user sets stands in the settings file. */}}
{{- define "solowire.env" -}}
{{- $secret := include "solowire.secretName" .root -}}
- name: SOLOWIRE_DATA_DIR
  value: /data/solowire
- name: SOLOWIRE_BACKPLANE
  value: tcp://{{ include "solowire.name" (dict "root" .root "role" "router") }}:7400
- name: SOLOWIRE_CURVE__SEED
  valueFrom:
    secretKeyRef: {name: {{ $secret }}, key: curve-seed}
- name: SOLOWIRE_SECRET
  valueFrom:
    secretKeyRef: {name: {{ $secret }}, key: secret}
{{- if ne .role "router" }}
- name: SOLOWIRE_ACCEPTED_SECRETS
  valueFrom:
    secretKeyRef: {name: {{ $secret }}, key: accepted-secrets, optional: true}
- name: SOLOWIRE_HOST
  value: {{ include "solowire.anyAddress" .root | quote }}
{{- if .root.Values.roles }}
- name: SOLOWIRE_ROLES_FILE
  value: /etc/solowire/roles.toml
{{- end }}
{{- end }}
{{- if .root.Values.eventTypes }}
- name: SOLOWIRE_CATALOG
  value: /etc/solowire/catalog.toml
{{- end }}
{{- include "solowire.tracingEnv" . }}
{{- with .values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "solowire.tracingEnv" -}}
{{- with .root.Values.tracing }}
{{- if .endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
- name: OTEL_TRACES_SAMPLER
  value: {{ .sampler | quote }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .samplerArg | quote }}
- name: POD_NAME
  valueFrom:
    fieldRef: {fieldPath: metadata.name}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name={{ $.root.Release.Namespace }},k8s.pod.name=$(POD_NAME)
{{- end }}
{{- end }}
{{- end -}}

{{/* The API port of router and shards is for probes and for whom the NetworkPolicy lets in. */}}
{{- define "solowire.apiEnv" -}}
- name: SOLOWIRE_LISTEN__API_HOST
  value: {{ include "solowire.anyAddress" .root | quote }}
- name: SOLOWIRE_LISTEN__API_PORT
  value: "9000"
{{- end -}}

{{- define "solowire.anyAddress" -}}
{{- ternary "::" "0.0.0.0" .Values.network.ipv6 -}}
{{- end -}}

{{- define "solowire.volumeMounts" -}}
- name: settings
  mountPath: /etc/solowire
  readOnly: true
- name: data
  mountPath: /data
- name: tmp
  mountPath: /tmp
{{- with .values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "solowire.volumes" -}}
- name: settings
  configMap:
    name: {{ include "solowire.name" . }}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- with .values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "solowire.preStop" -}}
{{- if . }}
lifecycle:
  preStop:
    sleep: {seconds: {{ . }}}
{{- end }}
{{- end -}}

{{/*
How many pods there are to be: with autoscaling as many as there are now, since a release that says nothing would set
them back to one, and one that says the minimum would undo what the autoscaler has done. Takes a dict: root, role, kind.
*/}}
{{- define "solowire.replicas" -}}
{{- $values := get .root.Values .role -}}
{{- if $values.autoscaling.enabled -}}
{{- $found := lookup "apps/v1" .kind .root.Release.Namespace (include "solowire.name" .) -}}
{{- $now := dig "spec" "replicas" $values.autoscaling.minReplicas $found -}}
{{- $most := eq .role "shard" | ternary (include "solowire.maxShards" .root) $values.autoscaling.maxReplicas -}}
{{- max (int $values.autoscaling.minReplicas) (min (int $most) (int $now)) -}}
{{- else -}}
{{- $values.replicas -}}
{{- end -}}
{{- end -}}
