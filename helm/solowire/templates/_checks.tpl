{{/* What can't be installed is refused with a sentence that says what to do. */}}

{{- define "solowire.check" -}}
{{- include "solowire.checkRemoved" . -}}
{{- $values := .Values -}}
{{- if not $values.host -}}
{{- fail "host: name the DNS name by which users come, such as --set host=live.example.com" -}}
{{- end -}}
{{- if and (eq $values.expose.type "loadBalancer") $values.tls.enabled (not $values.tls.secretName) -}}
{{- fail "tls.secretName: with expose.type loadBalancer the edge does TLS itself; name a Secret of type kubernetes.io/tls, or set tls.enabled=false" -}}
{{- end -}}
{{- if and (eq $values.expose.type "httpRoute") (not $values.expose.httpRoute.parentRefs) -}}
{{- fail "expose.httpRoute.parentRefs: name the Gateway that the route belongs to, such as [{name: public, namespace: infra}]" -}}
{{- end -}}
{{- include "solowire.checkValues" . -}}
{{- include "solowire.checkLabels" . -}}
{{- include "solowire.checkShards" . -}}
{{- include "solowire.checkEdge" . -}}
{{- include "solowire.checkMemory" . -}}
{{- include "solowire.checkEdgeMemory" . -}}
{{- include "solowire.checkVolume" . -}}
{{- end -}}

{{/* Values that are gone, or that the chart sets itself: the file says what to use. */}}
{{- define "solowire.checkRemoved" -}}
{{- range $path, $use := .Files.Get "files/removed-values.yaml" | fromYaml -}}
{{- $paths := list $path -}}
{{- if hasPrefix "settings." $path -}}
{{- $paths = list $path (print "router." $path) (print "gateway." $path) (print "shard." $path) -}}
{{- end -}}
{{- range $name := $paths -}}
{{- $node := $.Values -}}
{{- $isThere := true -}}
{{- range splitList "." $name -}}
{{- if and $isThere (kindIs "map" $node) (hasKey $node .) -}}
{{- $node = get $node . -}}
{{- else -}}
{{- $isThere = false -}}
{{- end -}}
{{- end -}}
{{- if $isThere -}}
{{- fail (printf "%s: %s" $name $use) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Selectors go by the chart's labels. */}}
{{- define "solowire.checkLabels" -}}
{{- $given := dict "commonLabels" .Values.commonLabels -}}
{{- range list "router" "gateway" "shard" "edge" -}}
{{- $_ := set $given (print . ".podLabels") (get $.Values .).podLabels -}}
{{- end -}}
{{- range $value, $labels := $given -}}
{{- range $label, $_ := $labels -}}
{{- if regexMatch "^(app[.]kubernetes[.]io|helm[.]sh)/" $label -}}
{{- fail (printf "%s: the label %s is the chart's own: choose another name" $value $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Connections that the autoscaler aims at, of one shard. */}}
{{- define "solowire.shardTarget" -}}
{{- div (mul (int64 .Values.connections.perShard) (int64 .Values.shard.autoscaling.targetPercent)) 100 | max 1 -}}
{{- end -}}

{{/* Shards that hold `connections.max` at the target: with so many the limit is reached, so no more are ever asked for. */}}
{{- define "solowire.shardsAtLimit" -}}
{{- $target := include "solowire.shardTarget" . | int64 -}}
{{- div (sub (add (int64 .Values.connections.max) $target) 1) $target -}}
{{- end -}}

{{/* Most shards: 0 in the values is as many as can be asked for. */}}
{{- define "solowire.maxShards" -}}
{{- $scaling := .Values.shard.autoscaling -}}
{{- int $scaling.maxReplicas | default (max (int $scaling.minReplicas) (include "solowire.shardsAtLimit" . | int)) -}}
{{- end -}}

{{- define "solowire.checkShards" -}}
{{- $max := int64 .Values.connections.max -}}
{{- $scaling := .Values.shard.autoscaling -}}
{{- if $scaling.enabled -}}
{{- $most := include "solowire.maxShards" . | int -}}
{{- if gt (int $scaling.minReplicas) $most -}}
{{- fail "shard.autoscaling: minReplicas is above maxReplicas" -}}
{{- end -}}
{{- $room := mul (int64 .Values.connections.perShard) (int64 $most) -}}
{{- if lt $room $max -}}
{{- fail (printf "shard.autoscaling.maxReplicas: %d shards hold %d connections (connections.perShard), and connections.max is %d: raise maxReplicas or connections.perShard, or lower connections.max" $most $room $max) -}}
{{- end -}}
{{- $asked := max (int $scaling.minReplicas) (include "solowire.shardsAtLimit" . | int) -}}
{{- if gt $most $asked -}}
{{- fail (printf "shard.autoscaling.maxReplicas: connections.max is %d, which are %d shards at the target of %s each: more than %d are never asked for. Raise connections.max, or lower maxReplicas to %d (0 computes it)" $max $asked (include "solowire.shardTarget" .) $asked $asked) -}}
{{- end -}}
{{- else -}}
{{- $room := mul (int64 .Values.connections.perShard) (int64 .Values.shard.replicas) -}}
{{- if lt $room $max -}}
{{- fail (printf "shard.replicas: %d shards hold %d connections (connections.perShard), and connections.max is %d: raise shard.replicas or connections.perShard, or lower connections.max" (int .Values.shard.replicas) $room $max) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.gateway.autoscaling.enabled (gt (int .Values.gateway.autoscaling.minReplicas) (int .Values.gateway.autoscaling.maxReplicas)) -}}
{{- fail "gateway.autoscaling: minReplicas is above maxReplicas" -}}
{{- end -}}
{{- end -}}

{{- define "solowire.checkEdge" -}}
{{- $room := div (mul (int64 .Values.edge.replicas) (int64 .Values.edge.workers) (int64 .Values.edge.workerConnections)) 2 -}}
{{- if lt $room (int64 .Values.connections.max) -}}
{{- fail (printf "edge: its pods pass %d WebSockets on (replicas × workers × workerConnections / 2), and connections.max is %d: raise one of them" $room (int64 .Values.connections.max)) -}}
{{- end -}}
{{- end -}}

{{/* Mebibytes of a quantity such as 512Mi; 0 for a unit that is not known here. */}}
{{- define "solowire.mebibytes" -}}
{{- $units := dict "" 0.00000095367 "k" 0.00095367 "M" 0.95367 "G" 953.67 "T" 953674.3 "Ki" 0.0009765625 "Mi" 1.0 "Gi" 1024.0 "Ti" 1048576.0 -}}
{{- $number := regexFind "^[0-9.]+" (toString .) -}}
{{- $unit := trimPrefix $number (toString .) -}}
{{- if regexMatch "^[eE][+]?[0-9]+$" $unit -}}
{{- divf (float64 .) 1048576.0 | floor | int64 -}}
{{- else if and $number (hasKey $units $unit) -}}
{{- mulf (float64 $number) (get $units $unit) | floor | int64 -}}
{{- else -}}
0
{{- end -}}
{{- end -}}

{{- define "solowire.checkMemory" -}}
{{- $shard := include "solowire.settings" (dict "root" . "role" "shard") | fromJson -}}
{{- $log := dig "shard" "recent_log" "max_bytes" 134217728 $shard | float64 -}}
{{- $need := addf 150.0 (divf (mulf 26624.0 (float64 .Values.connections.perShard)) 1048576.0) (divf (mulf 1.5 $log) 1048576.0) | ceil | int64 -}}
{{- $limit := dig "limits" "memory" "" .Values.shard.resources | include "solowire.mebibytes" | int64 -}}
{{- if and (gt $limit 0) (lt $limit $need) -}}
{{- fail (printf "shard.resources.limits.memory: %d MiB are less than the %d MiB that connections.perShard and settings.shard.recent_log.max_bytes take: raise the limit, or lower one of them" $limit $need) -}}
{{- end -}}
{{- end -}}

{{- define "solowire.checkEdgeMemory" -}}
{{- $left := max 1 (sub (int64 .Values.edge.replicas) 1) -}}
{{- $need := addf 32.0 (divf (mulf 35840.0 (float64 .Values.connections.max)) (mulf 1048576.0 (float64 $left))) | ceil | int64 -}}
{{- $limit := dig "limits" "memory" "" .Values.edge.resources | include "solowire.mebibytes" | int64 -}}
{{- if and (gt $limit 0) (lt $limit $need) -}}
{{- fail (printf "edge.resources.limits.memory: %d MiB are less than the %d MiB that connections.max take on each pod when one of them goes: raise the limit or edge.replicas" $limit $need) -}}
{{- end -}}
{{- end -}}

{{- define "solowire.checkVolume" -}}
{{- $router := include "solowire.settings" (dict "root" . "role" "router") | fromJson -}}
{{- $need := divf (mulf 2.0 (dig "journal" "max_bytes" 2147483648 $router | float64)) 1048576.0 | ceil | int64 -}}
{{- $size := include "solowire.mebibytes" .Values.router.persistence.size | int64 -}}
{{- if and .Values.router.persistence.enabled (lt $size $need) -}}
{{- fail (printf "router.persistence.size: %d MiB are less than twice settings.journal.max_bytes (%d MiB): raise the one or lower the other" $size $need) -}}
{{- end -}}
{{- end -}}
