import '@xyflow/react/dist/style.css'
import { ActionIcon, NumberInput, Text, useComputedColorScheme } from '@mantine/core'
import { IconChevronDown, IconChevronRight } from '@tabler/icons-react'
import {
  Background,
  BackgroundVariant,
  Controls,
  Handle,
  MarkerType,
  Position,
  ReactFlow,
  type Edge,
  type Node,
  type NodeProps,
  type ReactFlowInstance,
} from '@xyflow/react'
import { createContext, useContext, useEffect, useMemo, useRef, useState } from 'react'
import type { PipelineSpec, TaskView } from '../api'
import { between } from '../format'
import { useNow } from '../live'
import { StateIcon, isActive, stateText } from '../State'
import { layout } from './layout'
import { buildGraph, walk, type GraphNode } from './structure'

type StepNode = Node<{ node: GraphNode }, 'step'>
type GroupNode = Node<{ node: GraphNode; collapsed: boolean }, 'group'>

interface Actions {
  toggle: (path: string) => void
  choose: (path: string, iteration: number) => void
  chosen: Record<string, number>
}

const ActionsContext = createContext<Actions | null>(null)
/** Groups of pipelines larger than this start closed. */
const OPEN_UP_TO = 120

function Handles() {
  return (
    <>
      <Handle type="target" position={Position.Top} isConnectable={false} />
      <Handle type="source" position={Position.Bottom} isConnectable={false} />
    </>
  )
}

function Step({ data, selected }: NodeProps<StepNode>) {
  const { node } = data
  const active = isActive(node.state)
  const now = useNow(active)
  const time = node.task?.start_time ? between(node.task.start_time, node.task.end_time, now) : ''
  return (
    <div className="step" data-state={node.state} data-selected={selected} data-testid={`step-${node.path}`}>
      <Handles />
      <StateIcon state={node.state} />
      <div className="step-text">
        <div className="step-name" title={node.label}>{node.label}</div>
        <div className="step-state">
          {stateText(node.state)}
          {time && node.state !== 'CACHED' && ` · ${time}`}
        </div>
      </div>
    </div>
  )
}

const GROUP_WORDS = { loop: 'loop', condition: 'if', dag: 'group' }

function Group({ data, selected }: NodeProps<GroupNode>) {
  const actions = useContext(ActionsContext)!
  const { node, collapsed } = data
  const many = (node.iterations ?? 0) > node.children.length
  const word = node.kind === 'iteration' ? node.item : node.kind === 'step' ? '' : GROUP_WORDS[node.kind]
  return (
    <div className="group" data-kind={node.kind} data-state={node.state} data-selected={selected} data-collapsed={collapsed}>
      <Handles />
      <div className="group-header">
        <ActionIcon
          size="sm"
          variant="subtle"
          color="gray"
          className="nodrag"
          aria-label={`${collapsed ? 'Open' : 'Close'} ${node.label}`}
          onClick={(event) => {
            event.stopPropagation()
            actions.toggle(node.path)
          }}
        >
          {collapsed ? <IconChevronRight size={15} /> : <IconChevronDown size={15} />}
        </ActionIcon>
        <StateIcon state={node.state} size={15} />
        <span className="step-name" title={node.label}>{node.label}</span>
        {node.hidden ? <span className="group-word">{node.children.length} of {node.children.length + node.hidden}</span> : null}
        {word && <span className="group-word" title={word}>{word}{node.iterations ? ` × ${node.iterations}` : ''}</span>}
        {many && !collapsed && (
          <NumberInput
            className="nodrag"
            size="xs"
            w={76}
            min={0}
            max={(node.iterations ?? 1) - 1}
            value={actions.chosen[node.path] ?? 0}
            aria-label={`Iteration of ${node.label}`}
            onClick={(event) => event.stopPropagation()}
            onChange={(value) => actions.choose(node.path, Number(value) || 0)}
          />
        )}
      </div>
    </div>
  )
}

const NODE_TYPES = { step: Step, group: Group }

interface GraphProps {
  spec: PipelineSpec
  tasks: TaskView[]
  selected?: string
  onSelect: (path: string | undefined) => void
}

/** The DAG of a pipeline, with live states when there are tasks. */
export default function Graph({ spec, tasks, selected, onSelect }: GraphProps) {
  const scheme = useComputedColorScheme('light', { getInitialValueInEffect: false })
  const [toggled, setToggled] = useState<ReadonlySet<string>>(new Set())
  const [chosen, setChosen] = useState<Record<string, number>>({})
  const flow = useRef<ReactFlowInstance | null>(null)
  const frame = useRef<HTMLDivElement>(null)

  const graph = useMemo(() => buildGraph(spec, tasks, chosen), [spec, tasks, chosen])
  const collapsed = useMemo(() => {
    const groups = [...walk(graph)].filter((node) => node.kind !== 'step' && node.path !== 'root')
    const startClosed = [...walk(graph)].length > OPEN_UP_TO
    return new Set(groups.map((node) => node.path).filter((path) => startClosed !== toggled.has(path)))
  }, [graph, toggled])

  // Where things are depends on what is drawn, not on its states, which change many times a second.
  const drawn = [...walk(graph)].map((node) => `${node.path}:${collapsed.has(node.path)}:${node.kind}`).join()
  const placed = useMemo(() => layout(graph, collapsed), [drawn])
  const { nodes, edges, shape } = useMemo(() => {
    const current = new Map([...walk(graph)].map((node) => [node.path, node]))
    const boxes = placed.map((box) => ({ ...box, node: current.get(box.node.path) ?? box.node }))
    const visible = new Set(boxes.map((box) => box.node.path))
    const nodes = boxes.map((box): StepNode | GroupNode => {
      const shared = {
        id: box.node.path,
        parentId: box.parent,
        position: { x: box.x, y: box.y },
        width: box.width,
        height: box.height,
        selected: box.node.path === selected,
        ariaLabel: `${box.node.label}: ${stateText(box.node.state)}`,
      }
      return box.node.kind === 'step'
        ? { ...shared, type: 'step', data: { node: box.node } }
        : { ...shared, type: 'group', data: { node: box.node, collapsed: box.collapsed } }
    })
    const edges: Edge[] = [...walk(graph)].flatMap((node) =>
      node.edges
        .filter(({ from, to }) => visible.has(from) && visible.has(to))
        .map(({ from, to }) => ({
          id: `${from}->${to}`,
          source: from,
          target: to,
          zIndex: 1,
          markerEnd: { type: MarkerType.ArrowClosed, width: 14, height: 14 },
        })),
    )
    return { nodes, edges, shape: boxes.map((box) => `${box.node.path}:${box.collapsed}`).join() }
  }, [graph, placed, selected])

  // Fit when the drawing or its frame has changed, not when a state has.
  useEffect(() => {
    const fit = () => void flow.current?.fitView({ padding: 0.12, maxZoom: 1.1 })
    const later = requestAnimationFrame(() => requestAnimationFrame(fit))
    const observer = new ResizeObserver(fit)
    if (frame.current) observer.observe(frame.current)
    return () => {
      cancelAnimationFrame(later)
      observer.disconnect()
    }
  }, [shape])

  const actions = useMemo<Actions>(
    () => ({
      toggle: (path) => setToggled((old) => (old.has(path) ? new Set([...old].filter((p) => p !== path)) : new Set([...old, path]))),
      choose: (path, iteration) => setChosen((old) => ({ ...old, [path]: iteration })),
      chosen,
    }),
    [chosen],
  )

  const hidden = useMemo(() => [...walk(graph)].reduce((sum, node) => sum + (node.hidden ?? 0), 0), [graph])
  if (graph.children.length === 0) return <Text c="dimmed" p="lg">This pipeline has no steps.</Text>
  return (
    <ActionsContext.Provider value={actions}>
      {hidden > 0 && <Text size="xs" c="dimmed" px="md" pt={6} pos="relative" style={{ zIndex: 5 }}>{hidden.toLocaleString()} more steps are not drawn: those that failed or run come first.</Text>}
      <div className="graph" ref={frame} data-testid="graph">
        <ReactFlow
          nodes={nodes}
          edges={edges}
          nodeTypes={NODE_TYPES}
          colorMode={scheme}
          onInit={(instance) => {
            flow.current = instance as unknown as ReactFlowInstance
          }}
          onNodeClick={(_, node) => onSelect(node.id)}
          onPaneClick={() => onSelect(undefined)}
          onNodesChange={(changes) => {
            // Enter on a focused node selects it, like a click.
            for (const change of changes) if (change.type === 'select' && change.selected) onSelect(change.id)
          }}
          nodesDraggable={false}
          nodesConnectable={false}
          edgesFocusable={false}
          deleteKeyCode={null}
          minZoom={0.1}
          maxZoom={1.6}
          fitView
          fitViewOptions={{ padding: 0.12, maxZoom: 1.1 }}
          onlyRenderVisibleElements={nodes.length > 300}
          proOptions={{ hideAttribution: false }}
        >
          <Background variant={BackgroundVariant.Dots} gap={18} size={1} />
          
            <Controls showInteractive={false} />
          
        </ReactFlow>
      </div>
    </ActionsContext.Provider>
  )
}
