{{/*
The settings of each role, as TOML. A role gets the sections that it reads and no others (files/role-settings.yaml): what a
role does not read must not renew its pods.
*/}}

{{/* All settings of a role as JSON. Takes a dict: root, role. What the chart sets by other values comes last. */}}
{{- define "solowire.settings" -}}
{{- $values := .root.Values -}}
{{- $role := get $values .role -}}
{{- $defaults := dict "audit" (dict "output" "stderr") "logging" (dict "format" "json") -}}
{{- $limits := dict "max_connections" (int64 $values.connections.max) -}}
{{- if ne .role "gateway" -}}
{{- $_ := set $limits "max_connections_per_shard" (min (int64 $values.connections.perShard) (int64 $values.connections.max)) -}}
{{- end -}}
{{- $owned := dict "limits" $limits -}}
{{- if eq .role "gateway" -}}
{{- $_ := set $defaults "gateway" (dict "shard_url" (printf "%s://%s/s/{shard}/ws" (include "solowire.scheme" .root) $values.host)) -}}
{{- $_ := set $defaults "listen" (dict "trusted_proxies" $values.network.podNetworks) -}}
{{- $_ := set $owned "shard" (dict "rebalance_users_per_s" (int64 $values.shard.drainUsersPerSecond)) -}}
{{- else if eq .role "shard" -}}
{{- /* All sockets come from a few addresses, those of the edge. */ -}}
{{- $pending := dig "listen" "max_pending" 4000 $values.settings -}}
{{- $_ := set $defaults "listen" (dict "max_pending_per_address" (int64 $pending)) -}}
{{- $_ := set $owned "shard" (dict "rebalance_users_per_s" (int64 $values.shard.drainUsersPerSecond)) -}}
{{- $_ := set $owned "process" (dict "shutdown_timeout_s" (include "solowire.shardShutdown" .root | int64)) -}}
{{- end -}}
{{- $read := dict -}}
{{- $sections := get (.root.Files.Get "files/role-settings.yaml" | fromYaml) .role -}}
{{- range $sections -}}
{{- if hasKey $values.settings . -}}{{- $_ := set $read . (get $values.settings .) -}}{{- end -}}
{{- end -}}
{{- mergeOverwrite $defaults (deepCopy $read) (deepCopy $role.settings) $owned | toJson -}}
{{- end -}}

{{/* TOML of a table, with dotted keys. Takes a dict: prefix, table. */}}
{{- define "solowire.toml" -}}
{{- $prefix := .prefix -}}
{{- range $key, $value := .table -}}
{{- $name := regexMatch "^[A-Za-z0-9_-]+$" $key | ternary $key (toJson $key) -}}
{{- if kindIs "map" $value -}}
{{- include "solowire.toml" (dict "prefix" (print $prefix $name ".") "table" $value) -}}
{{- else if not (kindIs "invalid" $value) -}}
{{- printf "%s%s = %s\n" $prefix $name (toRawJson $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The files of a role, for its ConfigMap. Takes a dict: root, role. */}}
{{- define "solowire.files" -}}
settings.toml: |
  {{- include "solowire.toml" (dict "prefix" "" "table" (include "solowire.settings" . | fromJson)) | trimSuffix "\n" | nindent 2 }}
{{- if and .root.Values.roles (ne .role "router") }}
roles.toml: {{ toJson .root.Values.roles }}
{{- end }}
{{- with .root.Values.eventTypes }}
catalog.toml: {{ toJson . }}
{{- end }}
{{- end -}}

{{/* Seconds that sending all users of a full shard away takes. */}}
{{- define "solowire.drainSeconds" -}}
{{- divf (float64 .Values.connections.perShard) (float64 .Values.shard.drainUsersPerSecond) | ceil | int64 -}}
{{- end -}}

{{/* A shard's process.shutdown_timeout_s, of which the users get six tenths (GRACE_SHARE in workers/server.py). */}}
{{- define "solowire.shardShutdown" -}}
{{- add 10 (divf (include "solowire.drainSeconds" . | float64) 0.6 | ceil | int64) -}}
{{- end -}}

{{/* A shard's grace period: it waits, drains, closes, and has some seconds to spare. */}}
{{- define "solowire.shardGrace" -}}
{{- add (int64 .Values.shard.preStopSeconds) (include "solowire.shardShutdown" . | int64) 10 -}}
{{- end -}}

{{/* Seconds that a gateway has to end, as process.shutdown_timeout_s says. */}}
{{- define "solowire.gatewayShutdown" -}}
{{- $common := dig "process" "shutdown_timeout_s" 10 .Values.settings -}}
{{- dig "process" "shutdown_timeout_s" $common .Values.gateway.settings | float64 | ceil | int64 -}}
{{- end -}}

{{/* The file of a source. Takes a dict: root, name, values. Unless it is told otherwise it is called by its name here. */}}
{{- define "solowire.sourceFiles" -}}
{{- $source := mergeOverwrite (dict "server" .name) (deepCopy (default dict .values.settings)) -}}
{{- $table := mergeOverwrite (dict "logging" (dict "format" "json")) (pick (deepCopy .root.Values.settings) "logging") (dict "source" $source) -}}
settings.toml: |
  {{- include "solowire.toml" (dict "prefix" "" "table" $table) | trimSuffix "\n" | nindent 2 }}
{{- end -}}
